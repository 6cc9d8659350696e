"""Building manifests: folders, benchmarks and datasets in, a manifest that `run` reads out."""

from pnp_batch.building.target import Built, Target

__all__ = ["Built", "Target"]
