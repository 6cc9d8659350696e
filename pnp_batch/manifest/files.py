"""The files of a manifest: Parquet, CSV or JSON Lines in, their rows as they are out.

Parquet is never in memory as a whole, however many rows and images it holds; files of text are.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pnp_batch.errors import InvalidManifest
from pnp_batch.manifest.columns import LISTED, TEXT_COLUMNS
from pnp_batch.manifest.places import kind_of
from pnp_batch.storage import Storage

# A batch has at most so many rows, and with embedded images about so many bytes.
BATCH_ROWS, BATCH_BYTES = 4_096, 16 * 2**20
# Of a Parquet column that is read ahead.
READ_AHEAD = 2**20


@dataclass(frozen=True)
class File:
    """One file of a manifest.

    Attributes:
        where: what messages call it.
        parsed: its rows as they are, if it is a file of text; else only its schema.
        count: rows of it.
        place: the Parquet file, to be read in pieces.
    """

    where: str
    parsed: pa.Table
    count: int
    place: tuple[Storage, str] | None = None

    def tables(self) -> Iterator[pa.Table]:
        """Its rows as they are, some at a time."""
        if self.place is None:
            for begun in range(0, len(self.parsed), BATCH_ROWS):
                yield self.parsed.slice(begun, BATCH_ROWS)
            return
        storage, name = self.place
        with _readable(self.where, "parquet"), storage.open(name) as opened:
            # Read ahead by its own default, all of the file would stay in memory until its end.
            file = pq.ParquetFile(opened, buffer_size=READ_AHEAD, pre_buffer=False)
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                batch.validate(full=True)  # text that is not UTF-8 would fail much later
                yield pa.Table.from_batches([batch])


def parse(storage: Storage, name: str, told: str) -> File:
    """Opens a Parquet file, or reads a file of text.

    Args:
        storage: the manifest's folder.
        name: of the file below it, one that has a kind.
        told: what messages are to call it.

    Raises:
        InvalidManifest: it cannot be read as what its name says.
    """
    where, kind = posixpath.join(storage.uri, name), kind_of(name)
    with _readable(where, kind):
        if kind == "parquet":
            with storage.open(name) as opened:
                file = pq.ParquetFile(opened)
                schema, count = file.schema_arrow, file.metadata.num_rows
            return File(told, schema.empty_table(), count, (storage, name))
        data = storage.read(name)
        table = _parse_csv(data) if kind == "csv" else _parse_jsonl(data, where)
        return File(told, table, len(table))


@contextmanager
def _readable(where: str, kind: str | None) -> Iterator[None]:
    """What goes wrong while a file is read says so."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidManifest(
            f"{where}: cannot be read as {kind}: {reason}", "check the file"
        ) from error


def _batch_rows(file: pq.FileMetaData) -> int:
    """Rows to read at a time."""
    groups = [file.row_group(index) for index in range(file.num_row_groups)]
    size = sum(group.total_byte_size for group in groups) / max(1, file.num_rows)
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, size))))


def _parse_csv(data: bytes) -> pa.Table:
    text = {name: pa.string() for name in ("image", "prompt", *TEXT_COLUMNS)}
    if not data.strip():
        return pa.table({"image": pa.array([], pa.string()), "prompt": pa.array([], pa.string())})
    return pacsv.read_csv(
        io.BytesIO(data),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        # Only an empty cell is null: "NA" and "null" are words that a prompt may be.
        convert_options=pacsv.ConvertOptions(
            column_types=text,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _json_rows(data: bytes, where: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidManifest(
                f"{where}, line {number}: not valid JSON: {error.msg}", "one object a line"
            ) from error
        if not isinstance(row, dict):
            raise InvalidManifest(f"{where}, line {number}: not an object", "one object a line")
        rows.append(row)
    return rows


def _parse_jsonl(data: bytes, where: str) -> pa.Table:
    rows = _json_rows(data, where)
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if name == "prompt":
            # JSON Lines may mix single prompts and lists of them, which no Arrow type holds.
            columns[LISTED] = pa.array([isinstance(v, list) for v in values])
            values = [v if isinstance(v, list) else [v] for v in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise InvalidManifest(
                f"{where}: column {name!r} mixes types: {error}", "use one type a column"
            ) from error
        except UnicodeEncodeError as error:
            raise InvalidManifest(
                f"{where}: column {name!r} holds half a character: {error}", "mend the text"
            ) from error
    return pa.table(columns)
