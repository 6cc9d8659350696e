"""Images of a folder with prompts: all with all, or as a table pairs them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pnp_batch.building.names import Names
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt
from pnp_batch.building.target import Built, Target
from pnp_batch.errors import did_you_mean
from pnp_batch.manifest.files import parse
from pnp_batch.manifest.places import kind_of
from pnp_batch.storage import Storage

SCHEMA = pa.schema(
    [("row_id", pa.string()), ("image", pa.string()), ("prompt", pa.list_(pa.string()))]
)


def from_folder(folder: str, prompts: Sequence[str], target: Target) -> Built:
    """Every image below a folder with every prompt: a row for each image.

    Raises:
        NotBuilt: there are no images, or one has a name that no run would read.
    """
    pictures = Pictures(folder, target.base)
    names = Names(pictures.images)
    rows = (
        {"row_id": names.of(name), "image": pictures.reference(name), "prompt": list(prompts)}
        for name in pictures.images
    )
    return target.write(SCHEMA, rows, pictures)


def from_pairs(
    table: str, folder: str | None, target: Target, image: str = "image", prompt: str = "prompt"
) -> Built:
    """The images that a CSV file names with the prompts beside them: a row for each of its rows.

    Args:
        table: the CSV file; further columns are kept, those of a manifest as such.
        folder: what its file names start from; its own folder if None.
        target: the manifest.
        image: the column of file names.
        prompt: the column of prompts.

    Raises:
        NotBuilt: a column is missing, a prompt is empty, or a row names no file of the folder.
    """
    read = _read(table)
    for name in (image, prompt):
        if name not in read.column_names:
            raise NotBuilt(
                f"{table}: no column {name!r}; {did_you_mean(name, read.column_names)}",
                "name the columns with --image-column and --prompt-column",
            )
    pictures = Pictures(folder or posixpath.dirname(table) or ".", target.base)
    own = ("row_id", "image", "prompt")
    kept = [field for field in read.schema if field.name not in (image, prompt, *own)]
    schema = pa.schema([*((name, pa.string()) for name in own), *kept])
    return target.write(schema, _paired(read, pictures, table, (image, prompt)), pictures)


def _paired(
    read: pa.Table, pictures: Pictures, table: str, columns: tuple[str, str]
) -> Iterator[dict[str, Any]]:
    told, prompts = (_strings(read[name]) for name in columns)
    wheres = [f"{table}, row {number}" for number in range(1, len(read) + 1)]
    files = [pictures.find(path, where) for path, where in zip(told, wheres, strict=True)]
    names = Names(files)
    for row, file, text, where in zip(read.to_pylist(), files, prompts, wheres, strict=True):
        if not (text and text.strip()):
            raise NotBuilt(f"{where}: the prompt is empty", "expected a text")
        own = {"row_id": row.get("row_id") or names.row(file), "prompt": text}
        yield {**row, **own, "image": pictures.reference(file)}


def _read(table: str) -> pa.Table:
    folder, name = posixpath.split(table)
    storage = Storage(folder or ".")
    if kind_of(name) != "csv" or not storage.exists(name):
        raise NotBuilt(f"{table}: no such table", "expected a CSV file, its name ending in .csv")
    return parse(storage, name, table).parsed


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]
