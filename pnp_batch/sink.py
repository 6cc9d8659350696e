"""The sink: translated rows in, image files and then, last, their record out.

A row is done when the file that records it is on storage. Its image is there before that, under
a name that follows from the row alone, so a write that is repeated writes the same again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from PIL import Image

from pnp_batch import provenance, results, source
from pnp_batch.storage import Storage

# The columns of the results that are known only here.
ADDED = ("output", "sha256", "recorded_at")
# A store answers after many milliseconds, and a disk syncs as slowly; many images wait at once.
WRITERS = 16
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_HASH = re.compile(r"[0-9a-f]{64}")
# Names that Windows keeps for devices, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def image_name(row_id: str, image_format: str) -> str:
    """Where a row's image lies in the output: `images/<shard>/<name>.<ext>`.

    The name is the row's id where that is a safe file name and does not look like a hash; else
    its sha256. The shard, two hex digits of that hash, keeps folders small.
    """
    digest = hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()
    safe = _SAFE.fullmatch(row_id) and not _HASH.fullmatch(row_id) and not _DEVICE.fullmatch(row_id)
    name = row_id if safe and not row_id.endswith(".") else digest
    return f"images/{digest[:2]}/{name}.{image_format}"


def write(
    table: pa.Table,
    storage: Storage,
    image_format: str,
    schema: pa.Schema,
    model_digest: str | None = None,
) -> pa.Table:
    """Writes the images of translated rows, then records the rows.

    Args:
        table: translated rows: the columns of the results as far as they are known, and `pixels`,
            RGB bytes of `width` x `height`, null for a failed row.
        storage: the output.
        image_format: `png`, `jpg` or `webp`.
        schema: of the results.
        model_digest: of the model, which images tell with the rest of their provenance; without
            it they tell nothing.

    Returns:
        The rows as recorded.
    """
    rows = table.select(["pixels", "width", "height", *provenance.TOLD]).to_pylist()
    with ThreadPoolExecutor(WRITERS) as writers:
        made = list(
            writers.map(lambda row: _written(row, storage, image_format, model_digest), rows)
        )
    written = {name: [told[name] for told in made] for name in ("output", "sha256")}
    now = pa.array([datetime.now(UTC)] * len(table), pa.timestamp("us", "UTC"))
    columns = {**written, "recorded_at": now}
    recorded = pa.table(
        [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else table[field.name].cast(field.type)
            for field in schema
        ],
        schema=schema,
    )
    results.write(storage, recorded)
    return recorded


def _written(
    row: Mapping[str, Any], storage: Storage, image_format: str, model_digest: str | None
) -> dict[str, str | None]:
    """Writes the image of a row, if there is one; its name and digest."""
    if row["pixels"] is None:
        return {"output": None, "sha256": None}
    picture = Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"])
    told = None if model_digest is None else provenance.statement(row, model_digest, image_format)
    carried = provenance.carried(told, image_format) if told else {}
    encoded = source.encode(picture, image_format, carried)
    name = image_name(row["row_id"], image_format)
    storage.write(name, encoded)
    return {"output": name, "sha256": hashlib.sha256(encoded).hexdigest()}
