"""Results: what became of every row, as Parquet files that are the record of what is done.

In: tables of recorded rows. Out: `results/*.parquet` of an output, and what they say together.
While a run is under way a row may be recorded twice (a retried task, a failed row done again, a
part whose rows stand in a merged one already); `settle` ends that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch import shards
from pnp_batch.errors import InvalidManifest
from pnp_batch.parts import (
    ROWS_A_GROUP,
    PartGone,
    parts,
    small_parts,
    some_parts,
    write_merged,
    write_part,
)
from pnp_batch.recorded import ERROR, OK, Failure, Recorded, Records, Summary, gathered, recorded
from pnp_batch.storage import Storage

__all__ = [
    "ERROR",
    "OK",
    "SCHEMA",
    "Failure",
    "Recorded",
    "Summary",
    "parts",
    "picture",
    "read",
    "recorded",
    "schema",
    "settle",
    "write",
]

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("image", pa.string()),
        ("prompt", pa.string()),
        ("method", pa.string()),
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("output", pa.string()),
        ("member", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seed", pa.int64()),
        ("sha256", pa.string()),
        ("source_sha256", pa.string()),
        ("latents_key", pa.string()),
        ("seconds", pa.float64()),
        ("negative_prompt", pa.string()),
        ("source_prompt", pa.string()),
        ("guidance_scale", pa.float64()),
        ("pnp_f_t", pa.float64()),
        ("pnp_attn_t", pa.float64()),
        ("strength", pa.float64()),
        ("parameters", pa.string()),
        ("steps", pa.int32()),
        ("inversion_steps", pa.int32()),
        ("deep_every", pa.int32()),
        ("resolution", pa.int32()),
        ("fit", pa.string()),
        ("row_hash", pa.string()),
        ("recorded_at", pa.timestamp("us", "UTC")),
    ]
)


def schema(extra: pa.Schema) -> pa.Schema:
    """The schema of the results of a manifest with these extra columns.

    Raises:
        InvalidManifest: an extra column has the name of a results column.
    """
    taken = set(SCHEMA.names) & set(extra.names)
    if taken:
        raise InvalidManifest(
            f"the manifest's column {min(taken)!r} has the name of a results column",
            "rename it; results have their own " + ", ".join(sorted(taken)),
        )
    return pa.schema([*SCHEMA, *extra])


def write(storage: Storage, table: pa.Table) -> str:
    """Records rows: one whole file, written last, after every image it names."""
    return write_part(storage, table)


def read(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """The results of an output, each row once, also while a run is writing them.

    Args:
        storage: the output.
        columns: which to return; all if None.
    """
    there, tables = gathered(storage, columns)
    if not tables:
        kept = SCHEMA if columns is None else pa.schema([SCHEMA.field(c) for c in columns])
        return kept.empty_table()
    table = pa.concat_tables(tables, promote_options="default").filter(pa.array(there.counting()))
    return table if columns is None else table.select(list(columns))


def picture(storage: Storage, row: Mapping[str, Any]) -> bytes:
    """The image file of a row that is `ok`, whichever way it was written.

    Args:
        storage: the output.
        row: its `output`, and `member` where it has one.

    Raises:
        FileNotFoundError: it is gone.
        StorageUnavailable: it cannot be read.
    """
    member = row.get("member")
    if member is None:
        return storage.read(row["output"])
    return shards.read(storage, row["output"], member)


def settle(storage: Storage) -> None:
    """Leaves each row in exactly one part, and one part at most that is not whole.

    New parts are written before old ones are deleted, so a crash in between costs nothing but
    another call. Parts that are whole and hold no record in vain stay as they are.
    """
    there = recorded(storage)
    records, counting = there.records, there.counting()
    del there  # an index of all rows, not needed any more
    worn = _worn(records, counting)
    if not len(worn):
        return
    try:
        write_merged(storage, _counting(records, counting, worn), records.schema)
    except PartGone:  # somebody else settles it too
        settle(storage)
        return
    # Of records that tie the first one counts: the others go before it, so that none of them ever
    # stands before its copy alone.
    for number in reversed(worn):
        storage.delete(records.names[number])


def _worn(records: Records, counting: np.ndarray) -> list[int]:
    """Which parts have to be rewritten, by their numbers."""
    not_whole = small_parts(records.storage)
    vain = {n for n, kept in enumerate(_split(counting, records.starts)) if not kept.all()}
    small = {n for n, name in enumerate(records.names) if name in not_whole}
    return sorted(vain | small) if vain or len(small) > 1 else []


def _split(values: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """Of values of all records those of each part."""
    return np.split(values, starts[1:-1])


def _counting(records: Records, counting: np.ndarray, chosen: list[int]) -> Iterator[pa.Table]:
    """The records of some parts that count, in their order, some at a time."""
    files = some_parts(records.storage, [records.names[n] for n in chosen], lambda file: file)
    for number, file in zip(chosen, files, strict=True):
        start = records.starts[number]
        for batch in file.iter_batches(ROWS_A_GROUP, use_threads=False):
            kept = counting[start : start + len(batch)]
            yield pa.Table.from_batches([batch]).filter(pa.array(kept))
            start += len(batch)
