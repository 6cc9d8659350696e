"""Hugging Face datasets on disk or under any URI: image folders and Parquet files in, rows out.

Read as `datasets` lays them out, without that package: an image folder has `metadata.csv`,
`metadata.jsonl` or `metadata.parquet` with a column `file_name`, or none, and its folders are
classes; a Parquet dataset has a column of struct{bytes, path}.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pnp_batch import results
from pnp_batch.building.encoding import holds_bytes
from pnp_batch.building.names import Names
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt, shown
from pnp_batch.building.target import Built, Target
from pnp_batch.errors import WrongUsage, did_you_mean
from pnp_batch.manifest import KNOWN_COLUMNS, LISTED
from pnp_batch.manifest.files import File, parse
from pnp_batch.storage import Storage

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
SPLITS = {"train", "training", "test", "testing", "eval", "evaluation", "validation", "valid"}
SPLITS |= {"val", "dev"}
# Of `datasets`: train-00000-of-00002.parquet
_SHARD = re.compile(r"(\w+)-\d+-of-\d+\.parquet")
_IMAGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Wanted:
    """What to take from a dataset.

    Attributes:
        prompts: the target texts of every image; else each row has its own.
        prompt: the column of target texts.
        source_prompt: the column that describes the images.
        image: the column of images, of Parquet.
    """

    prompts: Sequence[str] = ()
    prompt: str | None = None
    source_prompt: str | None = None
    image: str = "image"

    def __post_init__(self) -> None:
        """Refuses none and both."""
        if bool(self.prompts) == (self.prompt is not None):
            raise WrongUsage(
                "prompts come from a column or from you, one of both",
                "give --prompt-column NAME, or --prompt TEXT, or --prompts FILE",
            )


def from_hugging_face(dataset: str, wanted: Wanted, target: Target) -> Built:
    """A row for each row of a dataset, its other columns kept and its split in `split`.

    Columns that a manifest or the results would take for theirs become `hf_<name>`; those that
    hold bytes are left out, but for `mask`.

    Args:
        dataset: a folder, a Parquet file, or a URI such as `hf://datasets/OWNER/NAME`.
        wanted: the columns to use.
        target: the manifest; Parquet where the dataset holds its images.

    Raises:
        NotBuilt: it is no such dataset, a column is missing, or an entry names no image in it.
    """
    if dataset.endswith(".parquet"):
        folder, name = posixpath.split(dataset)
        return _from_parquet(Storage(folder or "."), [name], wanted, target)
    pictures = Pictures(dataset, target.base)
    files = pictures.files
    metadata = [name for name in files if posixpath.basename(name) in METADATA]
    parquet = [name for name in files if name.endswith(".parquet")]
    if metadata:
        return _from_metadata(pictures, metadata, wanted, target)
    if parquet:
        return _from_parquet(pictures.storage, parquet, wanted, target)
    return _from_classes(pictures, wanted, target)


def _from_metadata(
    pictures: Pictures, metadata: Sequence[str], wanted: Wanted, target: Target
) -> Built:
    storage = pictures.storage
    tables = {name: parse(storage, name, f"{storage.uri}/{name}") for name in metadata}
    columns = _Columns(list(tables.values()), wanted, FILE_NAME)

    def rows() -> Iterator[dict[str, Any]]:
        names = Names(pictures.files)
        for name, file in tables.items():
            folder = posixpath.dirname(name)
            for number, row in enumerate(_rows(file), 1):
                where = f"{file.where}, row {number}"
                told = row.get(FILE_NAME)
                inside = posixpath.join(folder, told) if isinstance(told, str) else told
                found = pictures.find(inside, where)
                own = {"row_id": names.row(found), "image": pictures.reference(found)}
                yield {**columns.of(row, where), **own, "split": _split(found)}

    return target.write(columns.schema(pa.string()), rows(), pictures, columns.notes)


def _from_classes(pictures: Pictures, wanted: Wanted, target: Target) -> Built:
    if not wanted.prompts or wanted.source_prompt:
        raise NotBuilt(
            f"{pictures.storage.uri}: no {', '.join(METADATA)}, hence no columns",
            "give --prompt TEXT, or --prompts FILE with one a line",
        )
    fields = [("row_id", pa.string()), ("image", pa.string()), ("prompt", pa.list_(pa.string()))]
    schema = pa.schema([*fields, ("split", pa.string()), ("label", pa.string())])

    def rows() -> Iterator[dict[str, Any]]:
        names = Names(pictures.images)
        for name in pictures.images:
            label = posixpath.basename(posixpath.dirname(name))
            yield {
                "row_id": names.of(name),
                "image": pictures.reference(name),
                "prompt": list(wanted.prompts),
                "split": _split(name),
                "label": label if label and label.lower() not in SPLITS else None,
            }

    return target.write(schema, rows(), pictures)


def _from_parquet(storage: Storage, names: Sequence[str], wanted: Wanted, target: Target) -> Built:
    for name in names:
        if not storage.exists(name):
            raise NotBuilt(f"{storage.uri}/{name}: no such file", "check the path")
    files = {name: parse(storage, name, f"{storage.uri}/{name}") for name in names}
    columns = _Columns(list(files.values()), wanted, wanted.image)

    def rows() -> Iterator[dict[str, Any]]:
        counts: Counter[str] = Counter()
        for name, file in files.items():
            split = _split(name)
            for row in _rows(file):
                label = split or "row"
                where = f"{file.where}, row {counts[label] + 1} of {label}"
                image = row.get(wanted.image)
                if not isinstance(image, dict) or not image.get("bytes"):
                    raise NotBuilt(
                        f"{where}: {wanted.image!r} holds no image",
                        "expected struct{bytes, path} with the encoded bytes",
                    )
                row_id = f"{label}-{counts[label]:06d}"
                counts[label] += 1
                held = {"bytes": image["bytes"], "path": image.get("path")}
                own = {"row_id": row_id, "image": held, "split": split}
                yield {**columns.of(row, where), **own}

    return target.write(columns.schema(_IMAGE), rows(), notes=columns.notes)


class _Columns:
    """What becomes of the columns of a dataset.

    Args:
        files: of it.
        wanted: the columns to use.
        image: the column of images.
    """

    def __init__(self, files: Sequence[File], wanted: Wanted, image: str) -> None:
        schema = _unified(files)
        for column in (image, wanted.prompt, wanted.source_prompt):
            if column is not None and column not in schema.names:
                where = files[0].where
                raise NotBuilt(
                    f"{where}: no column {column!r}; {did_you_mean(column, schema.names)}",
                    "--prompt-column, --source-prompt-column and --image-column name columns",
                )
        self._wanted = wanted
        used = {image, FILE_NAME, wanted.prompt, wanted.source_prompt, LISTED, "split"}
        others = [field for field in schema if field.name not in used]
        self._kept = {f.name: f for f in others if f.name == "mask" or not holds_bytes(f.type)}
        left = [field.name for field in others if field.name not in self._kept]
        self.notes = [f"columns that hold bytes were left out: {', '.join(left)}"] * bool(left)
        self._lists = wanted.prompt is None or _has_lists(files, wanted.prompt)

    def schema(self, image: pa.DataType) -> pa.Schema:
        """Of the manifest, whose images have this type."""
        prompt = pa.list_(pa.string()) if self._lists else pa.string()
        own = [("row_id", pa.string()), ("image", image), ("prompt", prompt)]
        own += [("source_prompt", pa.string())] * bool(self._wanted.source_prompt)
        kept = [field.with_name(_carried(name)) for name, field in self._kept.items()]
        return pa.schema([*own, ("split", pa.string()), *kept])

    def of(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The texts of a row, and what is kept of it."""
        wanted, found = self._wanted, {_carried(name): row.get(name) for name in self._kept}
        if wanted.prompt is None:
            found["prompt"] = list(wanted.prompts)
        else:
            told = _text(row, wanted.prompt)
            if not told:
                raise NotBuilt(f"{where}: {wanted.prompt!r} is empty", "expected a text")
            found["prompt"] = [told] if self._lists and not isinstance(told, list) else told
        if wanted.source_prompt is not None:
            found["source_prompt"] = _text(row, wanted.source_prompt)
        for name in ("prompt", "source_prompt"):
            told = found.get(name)
            texts = told if isinstance(told, list) else [told]
            if not all(text is None or isinstance(text, str) for text in texts):
                raise NotBuilt(f"{where}: {name} is {shown(str(told))}", "expected a text")
        return found


def _unified(files: Sequence[File]) -> pa.Schema:
    try:
        return pa.unify_schemas([file.parsed.schema for file in files])
    except pa.ArrowException as error:
        raise NotBuilt(
            f"{files[0].where}: its files do not have the same columns: {error}",
            "build a manifest of each",
        ) from error


def _rows(file: File) -> Iterator[dict[str, Any]]:
    for table in file.tables():
        yield from table.to_pylist()


def _text(row: Mapping[str, Any], column: str) -> Any:  # noqa: ANN401 - checked later
    """What a column says: JSON Lines are read with a list of every prompt."""
    value: Any = row.get(column)
    return value[0] if column == "prompt" and row.get(LISTED) is False else value


def _has_lists(files: Sequence[File], column: str) -> bool:
    """Whether a column has lists of texts."""
    listed = [f.parsed[LISTED].to_pylist() for f in files if LISTED in f.parsed.column_names]
    if column == "prompt" and listed:
        return any(map(any, listed))
    return any(pa.types.is_list(file.parsed.schema.field(column).type) for file in files)


def _carried(name: str) -> str:
    taken = name in KNOWN_COLUMNS or name in results.SCHEMA.names
    return f"hf_{name}" if taken else name


def _split(name: str) -> str | None:
    """The split that a file belongs to, by its own name or a folder's."""
    folders = name.split("/")
    shard = _SHARD.fullmatch(folders.pop())
    if shard:
        return shard[1]
    return next((folder for folder in folders if folder.lower() in SPLITS), None)
