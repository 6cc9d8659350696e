"""What every stage knows of the job, and how rows carry their errors between stages."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pnp_batch.errors import RowError
from pnp_batch.models import ModelFiles
from pnp_batch.source import SourcePolicy
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage


@dataclass(frozen=True)
class Reading:
    """Where guidance images may come from, and what becomes of them before the work."""

    policy: SourcePolicy
    resolution: int
    fit: str


@dataclass(frozen=True)
class Work:
    """What every stage needs to know of the job."""

    output: Storage
    cache: Storage
    model: ModelFiles
    device: str
    dtype: str
    threads: int
    memory_format: str
    attention: str
    compiled: bool
    sampling: Sampling
    reading: Reading
    image_format: str
    provenance: bool
    sink: str
    schema: pa.Schema
    row_timeout: float


def kind(error: RowError | None) -> str | None:
    """The `error_type` of a row."""
    return None if error is None else type(error).__name__


def text(error: RowError | None) -> str | None:
    """The `error_message` of a row."""
    return None if error is None else str(error)
