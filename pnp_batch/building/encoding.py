"""Tables of one schema in, the bytes of a Parquet, CSV or JSON Lines file out, as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pnp_batch.building.refusal import NotBuilt
from pnp_batch.manifest import LISTED
from pnp_batch.manifest.places import kind_of

Encode = Callable[[pa.Table], None]


@contextmanager
def encoder(output: str, file: BinaryIO, schema: pa.Schema) -> Iterator[Encode]:
    """What writes a table into the file, in the format that the file's name says.

    Raises:
        NotBuilt: the format cannot hold a column.
    """
    kind = kind_of(output)
    if kind == "parquet":
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield writer.write_table
        return
    for field in schema:
        listed = field.name == "prompt"  # CSV has a row for each
        if holds_bytes(field.type) or (kind == "csv" and not listed and _is_nested(field.type)):
            raise NotBuilt(
                f"{output}: {kind} cannot hold the column {field.name!r} ({field.type})",
                "use an --output that ends in .parquet",
            )
    if kind == "jsonl":
        yield lambda table: _write_lines(file, table)
        return
    flat = _flat(schema)
    with pacsv.CSVWriter(file, flat) as writer:
        yield lambda table: writer.write_table(_one_a_row(table, flat))


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, or have some in them."""
    if _is_nested(kind):
        return any(holds_bytes(kind.field(n).type) for n in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _write_lines(file: BinaryIO, table: pa.Table) -> None:
    for row in table.to_pylist():
        if not row.pop(LISTED, True):
            row["prompt"] = row["prompt"][0]
        file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")


def _flat(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [f.with_type(pa.string()) if f.name == "prompt" else f for f in schema],
    )


def _one_a_row(table: pa.Table, flat: pa.Schema) -> pa.Table:
    """A row for each entry of a list of prompts, with the id that the entry has in the results."""
    if table.schema.field("prompt").type == pa.string():
        return table
    rows: list[dict[str, Any]] = [
        {**row, "row_id": f"{row['row_id']}-{number}", "prompt": prompt}
        for row in table.to_pylist()
        for number, prompt in enumerate(row["prompt"])
    ]
    return pa.Table.from_pylist(rows, flat)
