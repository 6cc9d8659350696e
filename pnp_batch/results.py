"""Results: what became of every row, as Parquet files that are the record of what is done.

In: tables of recorded rows. Out: `results/*.parquet` of an output, and what they say together.
While a run is under way a row may be recorded twice (a retried task, a failed row done again);
`settle` ends that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch import shards
from pnp_batch.errors import InvalidManifest
from pnp_batch.parts import ROWS_A_GROUP, PartGone, parts, some_parts, write_part
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

ROWS_A_FILE = 100_000
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
    return write_part(storage, [table], table.schema)


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
    """Leaves each row in exactly one file, and files of useful size.

    New files are written before old ones are deleted, so a crash in between costs nothing but
    another call.
    """
    there = recorded(storage)
    records, counting = there.records, there.counting()
    del there  # an index of all rows, not needed any more
    few = max(1, -(-len(counting) // (ROWS_A_FILE // 2)))
    if not len(counting) or (counting.all() and len(records.names) <= few):
        return
    try:
        kept = _rewritten(records, counting)
    except PartGone:  # somebody else settles it too
        settle(storage)
        return
    # Of records that tie the first one counts: the others go before it, so that none of them ever
    # stands before its copy alone.
    for name in reversed(records.names):
        if name not in kept:
            storage.delete(name)


def _rewritten(records: Records, counting: np.ndarray) -> set[str]:
    """Writes the records that count into new parts; their names."""
    rows = min(ROWS_A_GROUP, ROWS_A_FILE)
    groups = _groups(_counting(records, counting), records.schema, rows)
    names = set()
    for first in groups:
        part = chain([first], islice(groups, ROWS_A_FILE // rows - 1))
        names.add(write_part(records.storage, part, records.schema))
    return names


def _counting(records: Records, counting: np.ndarray) -> Iterator[pa.Table]:
    """The records that count, in their order, some at a time."""
    start = 0
    for file in some_parts(records.storage, records.names, lambda file: file):
        for batch in file.iter_batches(ROWS_A_GROUP, use_threads=False):
            chosen = counting[start : start + len(batch)]
            yield pa.Table.from_batches([batch]).filter(pa.array(chosen))
            start += len(batch)


def _groups(tables: Iterable[pa.Table], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of this schema and of so many rows each, the last one of fewer."""
    pending, count = [schema.empty_table()], 0
    for table in tables:
        pending.append(table)
        count += len(table)
        while count >= rows:
            whole = pa.concat_tables(pending, promote_options="default")
            yield whole.slice(0, rows)
            pending, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(pending, promote_options="default")
