"""What ships inside the package: the model named `demo`, and a manifest to try it on."""

from __future__ import annotations

from importlib.resources import files

from pnp_batch.config import RunConfig


def demo_config(output: str) -> RunConfig:
    """The job of `pnp-batch demo`: eight pictures, two prompts each, drawn by the project."""
    sample = files("pnp_batch") / "demo" / "sample.parquet"
    return RunConfig(manifest=str(sample), output=output)
