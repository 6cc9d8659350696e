"""What a builder says when it cannot go on, and how it shows names from strangers."""

from __future__ import annotations

from pnp_batch.errors import EXIT_INVALID, JobError
from pnp_batch.source.policy import shown

__all__ = ["NotBuilt", "shown"]


class NotBuilt(JobError):
    """What a manifest was to be built from cannot be used. The message names file and entry."""

    exit_code = EXIT_INVALID
