"""Starting a run from Python: what Ray reads while it is imported is settled before it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pnp_batch.process import reachable

if TYPE_CHECKING:
    from pnp_batch.config import RunConfig
    from pnp_batch.pipeline import Listener, RunResult


def run(
    config: RunConfig, listener: Listener | None = None, *, only_failed: bool = False
) -> RunResult:
    """Runs a job, or what is missing of it; `pnp_batch.pipeline.run` says how it ends."""
    reachable(config.address)
    from pnp_batch import pipeline

    return pipeline.run(config, listener, only_failed=only_failed)
