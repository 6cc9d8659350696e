"""The sink: translated rows in, image files and then, last, their record out.

A row is done when the file that records it is on storage. Its image is there before that, in a
file whose name and bytes follow from the rows alone, so a write that is repeated writes the same
again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from PIL import Image

from pnp_batch import provenance, results, shards, source
from pnp_batch.config import FILES, WEBDATASET
from pnp_batch.identity import as_json, sha256
from pnp_batch.storage import Storage

# The columns of the results that are known only here.
ADDED = ("output", "member", "sha256", "recorded_at")
# The column of a row's masks, a PNG file, where its method reads any; and the folder they go to.
SHOWN = "masks: png"
MASKS = "masks"
# A store answers after many milliseconds, and a disk syncs as slowly; many images wait at once.
WRITERS = 16
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,119}")
_HASH = re.compile(r"[0-9a-f]{64}")
# Names that Windows keeps for devices, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Made:
    """Where a row's image was written, and the digest of its bytes."""

    row_id: str
    output: str
    member: str | None
    sha256: str


@dataclass(frozen=True)
class Encoding:
    """How images become bytes.

    Attributes:
        image_format: `png`, `jpg` or `webp`.
        model_digest: of the model, which images tell with the rest of their provenance; without
            it they tell nothing.
    """

    image_format: str
    model_digest: str | None

    def encoded(self, row: Mapping[str, Any]) -> bytes:
        """The file of a row's image, whose `pixels` are RGB bytes."""
        picture = Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"])
        if self.model_digest is None:
            return source.encode(picture, self.image_format)
        told = provenance.statement(row, self.model_digest, self.image_format)
        carried = provenance.carried(told, self.image_format)
        return source.encode(picture, self.image_format, carried)


def image_name(row_id: str, image_format: str) -> str:
    """Where a row's image lies in the output: `images/<shard>/<name>.<ext>`.

    The name is the row's id where that is a safe file name and does not look like a hash; else
    its sha256. The shard, two hex digits of that hash, keeps folders small.
    """
    digest = _digest(row_id)
    return f"images/{digest[:2]}/{_name(row_id, digest)}.{image_format}"


def mask_name(row_id: str) -> str:
    """Where a row's masks lie in the output: `masks/<shard>/<name>.png`, named as its image is."""
    digest = _digest(row_id)
    return f"{MASKS}/{digest[:2]}/{_name(row_id, digest)}.png"


def sample_key(row_id: str) -> str:
    """A row's name in a shard: as in `image_name`, but a name with a dot is another sample's."""
    digest = _digest(row_id)
    return digest if "." in row_id else _name(row_id, digest)


def _digest(row_id: str) -> str:
    return hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()


def _name(row_id: str, digest: str) -> str:
    safe = _SAFE.fullmatch(row_id) and not _HASH.fullmatch(row_id) and not _DEVICE.fullmatch(row_id)
    return row_id if safe and not row_id.endswith(".") else digest


def write(
    table: pa.Table,
    storage: Storage,
    image_format: str,
    schema: pa.Schema,
    model_digest: str | None = None,
    kind: str = FILES,
) -> pa.Table:
    """Writes the images of translated rows, then records the rows.

    Args:
        table: translated rows: the columns of the results as far as they are known, and `pixels`,
            RGB bytes of `width` x `height`, null for a failed row; it may have `SHOWN`, too.
        storage: the output.
        image_format, model_digest: see `Encoding`.
        schema: of the results.
        kind: `files` for a file an image, `webdataset` for one shard of all of them.

    Returns:
        The rows as recorded.
    """
    translated = table.filter(table["pixels"].is_valid())
    put = _shard if kind == WEBDATASET else _files
    with ThreadPoolExecutor(WRITERS) as writers:
        made = list(put(translated, storage, Encoding(image_format, model_digest), writers))
    recorded = _recorded(table, made, schema)
    results.write(storage, recorded)
    return recorded


def _files(
    table: pa.Table, storage: Storage, encoding: Encoding, writers: Executor
) -> Iterable[Made]:
    """Writes a file for each image."""

    def put(row: Mapping[str, Any]) -> Made:
        data, name = encoding.encoded(row), image_name(row["row_id"], encoding.image_format)
        if row.get(SHOWN) is not None:
            storage.write(mask_name(row["row_id"]), row[SHOWN])
        storage.write(name, data)
        return Made(row["row_id"], name, None, sha256(data))

    needed = {"pixels", "width", "height", SHOWN, *provenance.TOLD}
    known = [name for name in table.column_names if name in needed]
    return writers.map(put, table.select(known).to_pylist())


def _shard(
    table: pa.Table, storage: Storage, encoding: Encoding, writers: Executor
) -> Iterable[Made]:
    """Writes one shard: each image, what its row says as JSON, and its masks if it has any."""
    rows = table.sort_by("row_id").to_pylist()
    if not rows:
        return []
    images = list(writers.map(encoding.encoded, rows))
    ours = {*results.SCHEMA.names, "pixels", SHOWN}
    own = [name for name in table.schema.names if name not in ours]
    samples = []
    for row, image in zip(rows, images, strict=True):
        told = {name: row[name] for name in (*provenance.TOLD, "width", "height", *own)}
        told = {k: v for k, v in told.items() if v is not None and not isinstance(v, bytes)}
        files = {encoding.image_format: image, "json": as_json(told).encode()}
        if row.get(SHOWN) is not None:
            files["masks.png"] = row[SHOWN]
        samples.append((sample_key(row["row_id"]), files))
    shard, data = shards.packed(samples)
    storage.write(shard, data)
    return [
        Made(row["row_id"], shard, f"{key}.{encoding.image_format}", sha256(image))
        for row, image, (key, _) in zip(rows, images, samples, strict=True)
    ]


def _recorded(table: pa.Table, made: Iterable[Made], schema: pa.Schema) -> pa.Table:
    by_id = {one.row_id: one for one in made}
    rows = [by_id.get(row_id) for row_id in table["row_id"].to_pylist()]
    columns: dict[str, Any] = {
        name: [getattr(row, name) if row else None for row in rows]
        for name in ("output", "member", "sha256")
    }
    columns["recorded_at"] = pa.array([datetime.now(UTC)] * len(table), pa.timestamp("us", "UTC"))
    return pa.table(
        [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else table[field.name].cast(field.type)
            for field in schema
        ],
        schema=schema,
    )
