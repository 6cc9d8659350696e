"""What every stage knows of the job, and how rows carry their errors between stages."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pnp_batch.errors import RowError
from pnp_batch.models import ModelFiles
from pnp_batch.source import SourcePolicy
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage

PACKED = "rows of a block"
# What is counted beside rows: the parts of results that were written.
PARTS = "parts"


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
    cache: Storage | None
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


def packed(rows: pa.Table) -> pa.Table:
    """A block's rows as one row of one column, which Ray neither cuts nor joins with others.

    Ray Data hands whole blocks to functions without a GPU alone; with one it wants a number of rows
    and fills it from several blocks. Of blocks packed so that number is 1.
    """
    parts = rows.combine_chunks().to_struct_array().chunks
    structs = parts[0] if parts else pa.array([], pa.struct(rows.schema))
    return pa.table(
        {PACKED: pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), structs)}
    )


def unpacked(block: pa.Table) -> pa.Table:
    """The rows of a packed block."""
    return pa.Table.from_struct_array(block[PACKED].combine_chunks().flatten())


def kind(error: RowError | None) -> str | None:
    """The `error_type` of a row."""
    return None if error is None else type(error).__name__


def text(error: RowError | None) -> str | None:
    """The `error_message` of a row."""
    return None if error is None else str(error)
