"""PIE-Bench: the `mapping_file.json` that its authors publish in, a row for each edit out.

Ju et al., PnP Inversion, ICLR 2024, arXiv 2310.01506. The file maps a key to `image_path`,
`original_prompt`, `editing_prompt`, `editing_instruction`, `editing_type_id`, `blended_word` and
`mask`. The same form without masks and types has their copy of TI2I.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pnp_batch.building.names import Names
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt, shown
from pnp_batch.building.target import Built, Target
from pnp_batch.building.texts import read_text, text_of
from pnp_batch.storage import Storage

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("image", pa.string()),
        ("prompt", pa.string()),
        ("source_prompt", pa.string()),
        ("benchmark", pa.string()),
        ("editing_type", pa.string()),
        ("editing_instruction", pa.string()),
        ("blended_word", pa.string()),
        ("mask", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)
EDITING_TYPES = (
    "random",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change colour",
    "change material",
    "change background",
    "change style",
)
SIDE = 512
# The folder of the images beside the mapping file, as it is published.
IMAGES = "annotation_images"


def from_pie_bench(file: str, folder: str | None, target: Target) -> Built:
    """A row for each entry, its mask white where the picture may change.

    Args:
        file: the mapping file.
        folder: where its images lie; if None, `annotation_images` beside it, or its own folder.
        target: the manifest, Parquet.

    Raises:
        NotBuilt: the file is not of this form, or an image is missing.
    """
    entries = _entries(file)
    pictures = Pictures(folder or _beside(file), target.base)
    names = Names(entries)

    def rows() -> Iterator[dict[str, Any]]:
        for key, entry in entries.items():
            where = f"{file}, entry {shown(key)}"
            if not isinstance(entry, dict):
                raise NotBuilt(
                    f"{where}: not an object", "expected image_path, editing_prompt, ..."
                )
            name = names.of(key)
            found = pictures.find(entry.get("image_path"), where, anywhere=True)
            yield {
                "row_id": name,
                "image": pictures.reference(found),
                "prompt": _prompt(entry, where),
                "source_prompt": _unmarked(entry, "original_prompt", where),
                "benchmark": "PIE-Bench" if entry.get("mask") else None,
                "editing_type": _editing_type(entry, where),
                "editing_instruction": text_of(entry, "editing_instruction", where),
                "blended_word": text_of(entry, "blended_word", where),
                "mask": _mask(entry, where, name),
            }

    return target.write(SCHEMA, rows(), pictures)


def mask_of(lengths: list[int]) -> NDArray[np.bool_]:
    """The mask (512, 512) of pairs of start and length, row by row, True where a pixel may change.

    As the authors' `mask_decode`: a run ends with the picture, and the outermost pixels always
    belong to the mask, "to avoid annotation errors in boundary".
    """
    flat = np.zeros(SIDE * SIDE, bool)
    for start, length in zip(lengths[::2], lengths[1::2], strict=True):
        flat[start : start + length] = True
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1], :] = True
    mask[:, [0, -1]] = True
    return mask


def _beside(file: str) -> str:
    own = posixpath.dirname(file) or "."
    images = posixpath.join(own, IMAGES)
    return images if Storage(images).files() else own


def _entries(file: str) -> dict[str, Any]:
    try:
        read = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise NotBuilt(f"{file}: not valid JSON: {error}", "check the file") from error
    if not isinstance(read, dict) or not read:
        raise NotBuilt(
            f"{file}: not a mapping file of PIE-Bench", "expected an object of entries by their key"
        )
    return read


def _unmarked(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text without the brackets that mark the edit."""
    text = text_of(entry, key, where) or ""
    return text.replace("[", "").replace("]", "").strip() or None


def _prompt(entry: Mapping[str, Any], where: str) -> str:
    prompt = _unmarked(entry, "editing_prompt", where)
    if prompt is None:
        raise NotBuilt(f"{where}: no editing_prompt", "expected the target text")
    return prompt


def _editing_type(entry: Mapping[str, Any], where: str) -> str | None:
    told = entry.get("editing_type_id")
    if told is None:
        return None
    known = {str(number): name for number, name in enumerate(EDITING_TYPES)}
    if str(told) not in known:
        raise NotBuilt(f"{where}: editing_type_id is {shown(str(told))}", "expected 0 to 9")
    return known[str(told)]


def _mask(entry: Mapping[str, Any], where: str, name: str) -> dict[str, Any] | None:
    told = entry.get("mask")
    if told is None or told == []:
        return None
    numbers = isinstance(told, list) and all(type(n) is int for n in told)
    if not numbers or len(told) % 2:
        raise NotBuilt(f"{where}: mask is no list of pairs", "expected [start, length, ...]")
    if any(not 0 <= n < SIDE * SIDE for n in told[::2]) or any(n < 0 for n in told[1::2]):
        raise NotBuilt(
            f"{where}: mask leaves the picture", f"expected starts from 0 to {SIDE * SIDE - 1}"
        )
    buffer = io.BytesIO()
    Image.fromarray(mask_of(told)).save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": f"{name}-mask.png"}
