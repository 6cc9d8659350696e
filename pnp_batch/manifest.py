"""The manifest: Parquet, CSV or JSON Lines in, checked Arrow batches of one schema out.

Finds the files, checks names and types, and refuses a bad manifest before anything else happens.
What a single row says is judged later, in `rows`. Parquet is never in memory as a whole, however
many rows and images it holds; files of text are.
"""

from __future__ import annotations

import glob
import io
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pnp_batch.errors import InvalidManifest, did_you_mean
from pnp_batch.storage import Storage, is_local

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TEXT_COLUMNS = ("row_id", "negative_prompt", "source_prompt", "method")
NUMBER_COLUMNS = ("guidance_scale", "pnp_f_t", "pnp_attn_t", "strength")
KNOWN_COLUMNS = ("image", "prompt", *TEXT_COLUMNS, "seed", *NUMBER_COLUMNS)
GLOB_CHARACTERS = "*?["
# All images of a manifest together may well be more than the 2 GiB of a plain binary array.
IMAGE_TYPE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
# A checked table holds every prompt as a list; this column says which were lists to begin with.
LISTED = "prompt was a list"


# A batch has at most so many rows, and with embedded images about so many bytes.
BATCH_ROWS, BATCH_BYTES = 4_096, 16 * 2**20
# Of a Parquet column that is read ahead.
READ_AHEAD = 2**20


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        schema: of its rows, known columns first brought to one type each.
        base: the folder that relative image paths start from.
        uri: where it was found.
        files: what it is made of.
    """

    schema: pa.Schema
    base: str
    uri: str
    files: tuple[_File, ...]

    @property
    def extra(self) -> pa.Schema:
        """The columns that are carried into the results untouched."""
        own = (*KNOWN_COLUMNS, LISTED)
        return pa.schema([f for f in self.schema if f.name not in own])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, a batch at a time.

        Raises:
            InvalidManifest: a file is damaged, or holds a value that does not fit its column.
        """
        empty = self.schema.empty_table()
        for file in self.files:
            for table in file.tables():
                checked = _checked(table, file.where)
                whole = pa.concat_tables([empty, checked], promote_options="default")
                yield from whole.select(self.schema.names).combine_chunks().to_batches()

    @property
    def table(self) -> pa.Table:
        """All its rows, for those who know that they are few."""
        return pa.Table.from_batches(self.batches(), self.schema)


@dataclass(frozen=True)
class _File:
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
            file = pq.ParquetFile(opened, buffer_size=READ_AHEAD)
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                batch.validate(full=True)  # text that is not UTF-8 would fail much later
                yield pa.Table.from_batches([batch])


def read(uri: str) -> Manifest:
    """Reads a manifest file, a folder of such files, or a glob.

    Raises:
        InvalidManifest: unreadable, empty, a required column missing, or a column of a wrong type.
    """
    base, names = _files(uri)
    storage = Storage(base)
    files = tuple(_parse(storage, n, f"{uri}: {n}" if len(names) > 1 else uri) for n in names)
    schemas = [_checked(file.parsed.slice(0, 0), file.where).schema for file in files]
    try:
        schema = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise InvalidManifest(
            f"{uri}: its files do not have the same column types: {error}",
            "write them with one schema, or run them one by one",
        ) from error
    if not sum(file.count for file in files):
        raise InvalidManifest(f"{uri}: no rows", "a manifest needs at least one row")
    return Manifest(schema, storage.uri, uri, files)


def _files(uri: str) -> tuple[str, list[str]]:
    """The folder that paths are relative to, and the manifest files below it."""
    if any(c in uri for c in GLOB_CHARACTERS) and not (is_local(uri) and Path(uri).exists()):
        return _matching(uri)
    folder, name = posixpath.split(uri.rstrip("/"))
    suffix = posixpath.splitext(name)[1].lower()
    if suffix in FORMATS and not (is_local(uri) and Path(uri).is_dir()):
        if not Storage(folder or ".").exists(name):
            raise InvalidManifest(f"{uri}: no such file", "check the path")
        return folder or ".", [name]
    if is_local(uri) and Path(uri).is_file():
        raise InvalidManifest(
            f"{uri}: unknown kind of file {suffix or name!r}", "use .parquet, .csv or .jsonl"
        )
    names = [n for n in Storage(uri).files() if _is_manifest(n)]
    if not names:
        raise InvalidManifest(f"{uri}: no manifest found", "use .parquet, .csv or .jsonl files")
    return uri, names


def _matching(pattern: str) -> tuple[str, list[str]]:
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in GLOB_CHARACTERS))
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    storage = Storage(base)
    root = storage.path("")
    found = storage.fs.glob(posixpath.join(glob.escape(root), *parts[fixed:]))
    names = sorted(n for n in (posixpath.relpath(path, root) for path in found) if _is_manifest(n))
    if not names:
        raise InvalidManifest(f"{pattern}: matches no manifest", "use .parquet, .csv or .jsonl")
    return base, names


def _is_manifest(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and posixpath.splitext(name)[1].lower() in FORMATS


def _parse(storage: Storage, name: str, told: str) -> _File:
    where = posixpath.join(storage.uri, name)
    kind = FORMATS[posixpath.splitext(name)[1].lower()]
    with _readable(where, kind):
        if kind == "parquet":
            with storage.open(name) as opened:
                file = pq.ParquetFile(opened)
                schema, count = file.schema_arrow, file.metadata.num_rows
            return _File(told, schema.empty_table(), count, (storage, name))
        data = storage.read(name)
        table = _parse_csv(data) if kind == "csv" else _parse_jsonl(data, where)
        return _File(told, table, len(table))


@contextmanager
def _readable(where: str, kind: str) -> Iterator[None]:
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


def _parse_jsonl(data: bytes, where: str) -> pa.Table:
    rows: list[dict[str, Any]] = []
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
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, pa.Array] = {}
    for name in names:
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


def _checked(table: pa.Table, where: str) -> pa.Table:
    """Checks names and types and brings the known columns to one type each."""
    for name in ("image", "prompt"):
        if name not in table.column_names:
            near = did_you_mean(name, table.column_names) if table.column_names else "it has none"
            raise InvalidManifest(
                f"{where}: column {name!r} is missing (columns: {', '.join(table.column_names)})",
                f"every manifest needs the columns image and prompt; {near}",
            )
    repeated = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if repeated:
        raise InvalidManifest(f"{where}: column {repeated[0]!r} appears twice", "rename one")
    columns = {name: _column(table, name, where) for name in table.column_names}
    prompts = _listed(columns["prompt"], where)
    return pa.table(
        {**columns, "prompt": prompts["prompt"], LISTED: columns.get(LISTED, prompts[LISTED])}
    )


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if name in ("image", "prompt") or name not in KNOWN_COLUMNS:
        return _image(column, where) if name == "image" else column
    if pa.types.is_null(column.type):
        return column.cast(_wanted(name))
    fits = {
        pa.string(): _is_text,
        pa.int64(): pa.types.is_integer,
        pa.float64(): lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
    }[_wanted(name)]
    if not fits(column.type):
        raise _wrong_type(name, column.type, _wanted(name), where)
    try:
        return column.cast(_wanted(name))
    except pa.ArrowInvalid as error:
        raise InvalidManifest(
            f"{where}: column {name!r} holds a value out of range: {error}", "mend that value"
        ) from error


def _wanted(name: str) -> pa.DataType:
    if name == "seed":
        return pa.int64()
    return pa.float64() if name in NUMBER_COLUMNS else pa.string()


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _wrong_type(name: str, kind: pa.DataType, wanted: object, where: str) -> InvalidManifest:
    return InvalidManifest(
        f"{where}: column {name!r} has type {kind}, expected {wanted}", "cast the column"
    )


def _image(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Images as struct{bytes, path}, whichever of the two layouts came in."""
    kind = column.type
    if pa.types.is_null(kind) or _is_text(kind):
        paths = column.cast(pa.string())
        empty = pa.nulls(len(column), IMAGE_TYPE.field("bytes").type)
        parts = [empty, paths.combine_chunks()]
    elif pa.types.is_struct(kind):
        parts = [_image_part(column, part, where) for part in IMAGE_TYPE.names]
    else:
        raise _wrong_type("image", kind, "string or struct{bytes: binary, path: string}", where)
    return pa.chunked_array([pa.StructArray.from_arrays(parts, names=IMAGE_TYPE.names)])


def _image_part(column: pa.ChunkedArray, part: str, where: str) -> pa.Array:
    index = column.type.get_field_index(part)
    wanted = IMAGE_TYPE.field(part).type
    if index < 0:
        return pa.nulls(len(column), wanted)
    values = pc.struct_field(column, index)
    fits = _is_bytes if part == "bytes" else _is_text
    if not (pa.types.is_null(values.type) or fits(values.type)):
        raise _wrong_type(f"image.{part}", values.type, wanted, where)
    return values.cast(wanted).combine_chunks()


def _listed(column: pa.ChunkedArray, where: str) -> dict[str, pa.Array]:
    """Prompts as lists, and whether each was given as one."""
    kind = column.type
    if pa.types.is_null(kind) or _is_text(kind):
        texts = column.cast(pa.string()).combine_chunks()
        offsets = pa.array(range(len(texts) + 1), pa.int32())
        listed = pa.array([False] * len(texts), pa.bool_())
        return {"prompt": pa.ListArray.from_arrays(offsets, texts), LISTED: listed}
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not (_is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise _wrong_type("prompt", kind, "string or list of strings", where)
    lists = column.cast(pa.list_(pa.string())).combine_chunks()
    return {"prompt": lists, LISTED: pc.is_valid(lists)}
