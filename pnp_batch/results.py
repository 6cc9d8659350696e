"""Results: what became of every row, as Parquet files that are the record of what is done.

In: tables of recorded rows. Out: `results/*.parquet` of an output, and what they say together.
While a run is under way a row may be recorded twice (a retried task, a failed row done again);
`settle` ends that. A file's name is the digest of its bytes: written twice it is the same file, and
a reader sees when its bytes are not what was written.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pnp_batch.errors import InvalidManifest
from pnp_batch.storage import Storage, StorageUnavailable

FOLDER = "results"
OK = "ok"
ERROR = "error"
ROWS_A_FILE = 100_000
READERS = 16
# Bytes that change on the way are read again; those that are rotten stay so.
CHANCES = 3
# What decides which record of a row counts.
_ORDER = ("row_id", "status", "recorded_at")
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
        ("steps", pa.int32()),
        ("inversion_steps", pa.int32()),
        ("resolution", pa.int32()),
        ("fit", pa.string()),
        ("row_hash", pa.string()),
        ("recorded_at", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class Failure:
    """One kind of failure: how many rows, and the first of them as an example."""

    error_type: str
    count: int
    row_id: str
    message: str


@dataclass(frozen=True)
class Summary:
    """What the results of an output say together."""

    done: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = field(default=())


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
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = _part_name(buffer.getvalue())
    storage.write(name, buffer.getvalue())
    return name


def _part_name(data: bytes) -> str:
    return f"{FOLDER}/part-{hashlib.sha256(data).hexdigest()[:24]}.parquet"


def parts(storage: Storage) -> list[str]:
    """The result files of an output."""
    return [name for name in storage.files(FOLDER) if name.endswith(".parquet")]


def read(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """The results of an output, each row once, also while a run is writing them.

    Args:
        storage: the output.
        columns: which to return; all if None.
    """
    wanted = None if columns is None else list(dict.fromkeys((*columns, *_ORDER)))
    tables = list(_read_parts(storage, wanted).values())
    if not tables:
        kept = SCHEMA if columns is None else pa.schema([SCHEMA.field(c) for c in columns])
        return kept.empty_table()
    table = pa.concat_tables(tables, promote_options="default")
    table = table.take(_current(table))
    return table if columns is None else table.select(list(columns))


def _read_parts(storage: Storage, columns: list[str] | None) -> dict[str, pa.Table]:
    """Every result file. Begins again when one goes away: a newer one holds its rows by then."""
    names = parts(storage)
    with ThreadPoolExecutor(READERS) as readers:
        read = list(readers.map(lambda name: _read_part(storage, name, columns), names))
    tables = {name: table for name, table in zip(names, read, strict=True) if table is not None}
    return tables if len(tables) == len(names) else _read_parts(storage, columns)


def _read_part(storage: Storage, name: str, columns: list[str] | None) -> pa.Table | None:
    for _ in range(CHANCES):
        data = storage.read_if_there(name)
        if data is None:
            return None
        if _part_name(data) == name:
            return pq.read_table(io.BytesIO(data), columns=columns, use_threads=False)
    raise StorageUnavailable(
        f"{storage.uri}/{name} is not the file that was written there",
        "delete that file and run the same command again: it does those rows anew",
    )


def _current(table: pa.Table) -> pa.Array:
    """Indices of the record that counts for each row: an ok one if any, the latest if not."""
    judged = table.select(list(_ORDER)).append_column("error", pc.not_equal(table["status"], OK))
    order = pc.sort_indices(
        judged,
        sort_keys=[("row_id", "ascending"), ("error", "ascending"), ("recorded_at", "descending")],
    )
    ids = judged["row_id"].take(order).combine_chunks()
    first = pc.not_equal(ids[1:], ids[:-1])
    keep = pa.concat_arrays([pa.array([True] * min(1, len(ids))), first])
    return order.filter(keep).sort()


def settle(storage: Storage) -> None:
    """Leaves each row in exactly one file, and files of useful size.

    New files are written before old ones are deleted, so a crash in between costs nothing but
    another call.
    """
    named = _read_parts(storage, None)
    total = sum(map(len, named.values()))
    if not total:
        return
    table = pa.concat_tables(named.values(), promote_options="default")
    current = _current(table)
    if len(current) == total and len(named) <= max(1, -(-total // (ROWS_A_FILE // 2))):
        return
    table = table.take(current)
    kept = {write(storage, table.slice(i, ROWS_A_FILE)) for i in range(0, len(table), ROWS_A_FILE)}
    for name in named.keys() - kept:
        storage.delete(name)


def summarise(table: pa.Table) -> Summary:
    """Counts a table with `row_id`, `status`, `error_type` and `error_message`."""
    bad = table.filter(pc.equal(table["status"], ERROR))
    counts = Counter(bad["error_type"].to_pylist())
    examples: dict[Any, dict[str, Any]] = {}
    for row in bad.select(["row_id", "error_type", "error_message"]).to_pylist():
        examples.setdefault(row["error_type"], row)
    failures = tuple(
        Failure(str(kind), count, examples[kind]["row_id"], examples[kind]["error_message"] or "")
        for kind, count in counts.most_common()
    )
    return Summary(len(table) - len(bad), len(bad), failures)
