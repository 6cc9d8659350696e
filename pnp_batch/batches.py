"""Which rows share a UNet batch: rows in, batches of fixed shape out.

A batch holds G guidance images with P rows each, and its shape (G, G x P) follows from the whole
manifest, never from what happens to be left to do. A batch that is not full is padded. On one
device a row's bits depend on the shape of its batch alone, so they survive resumes and retries.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa

DEFAULT_BATCH_SIZE = 8
# Rows with other values in any of these cannot share a UNet batch.
RECIPE = ("method", "pnp_f_t", "pnp_attn_t", "strength")
R = TypeVar("R", bound="Packable")


@dataclass(frozen=True)
class Shape:
    """The fixed shape of a batch: guidance images, and rows of each."""

    images: int
    share: int

    @property
    def rows(self) -> int:
        """Rows of a full batch."""
        return self.images * self.share


def with_shapes(rows: pa.Table, batch_size: int) -> pa.Table:
    """Adds to each row the shape of its batches, as columns `images` and `share`.

    An image's share is the largest number of rows it has over its recipes, so that its inversion
    has one shape however often the image is used. Images of one share are spread evenly over as
    few batches as possible, which keeps the padding small.
    """
    image = _codes(rows, ("guidance",))
    recipe = _codes(rows, ("guidance", *RECIPE))
    share = np.zeros(image.max() + 1, np.int64)
    np.maximum.at(share, image, np.bincount(recipe)[recipe])
    share = np.minimum(share, batch_size)
    with_share = np.bincount(share)[share]
    batches = -(-with_share // np.maximum(1, batch_size // share))
    images = -(-with_share // batches)
    for name, values in (("images", images), ("share", share)):
        rows = rows.append_column(name, pa.array(values[image], pa.int64()))
    return rows


def ordered(rows: pa.Table) -> pa.Table:
    """Sorts rows so that those of one image are neighbours, and so are images of one share."""
    image = _codes(rows, ("guidance",))
    first = np.full(image.max() + 1, len(image))
    np.minimum.at(first, image, np.arange(len(image)))
    return rows.take(np.lexsort((np.arange(len(image)), first[image], rows["share"].to_numpy())))


def blocks(rows: pa.Table, wanted: int) -> list[pa.Table]:
    """Cuts ordered rows into about `wanted` blocks of whole batches.

    The rows of one image stay in one block, unless they alone are more than a block should hold.
    """
    target = max(1, -(-len(rows) // max(1, wanted)))
    image, share, images = (
        _codes(rows, ("guidance",)),
        rows["share"].to_numpy(),
        rows["images"].to_numpy(),
    )
    starts = [0, *(np.flatnonzero(np.diff(image)) + 1).tolist(), len(rows)]
    cuts, held = [0], 0
    for start, end in itertools.pairwise(starts):
        begun = cuts[-1]
        full = start - begun >= target and held % images[start] == 0
        if start > begun and (full or share[start] != share[begun]):
            cuts.append(start)
            held = 0
        piece = -(-target // int(share[start])) * int(share[start])
        while end - cuts[-1] >= 2 * piece and cuts[-1] >= start:
            cuts.append(cuts[-1] + piece)
        held += 1
    return [rows.slice(a, b - a) for a, b in itertools.pairwise([*cuts, len(rows)])]


class Packable(Protocol):
    """What `pack` needs to know of a row."""

    @property
    def guidance(self) -> str:
        """Names the guidance image."""

    @property
    def recipe(self) -> tuple[object, ...]:
        """Rows with another one cannot share a batch."""

    @property
    def shape(self) -> Shape:
        """The shape of the row's batches."""


def pack(rows: Iterable[R]) -> Iterator[tuple[list[list[R]], Shape]]:
    """Packs rows into batches.

    Yields:
        At most `shape.images` lists of at most `shape.share` rows each, a list's rows of one
        image, all of one recipe and shape; and the shape.
    """
    classes: dict[tuple[object, ...], dict[str, list[R]]] = {}
    for row in rows:
        key = (row.shape, row.recipe)
        classes.setdefault(key, {}).setdefault(row.guidance, []).append(row)
    for images in classes.values():
        shape = next(iter(images.values()))[0].shape
        units = [
            own[i : i + shape.share]
            for own in images.values()
            for i in range(0, len(own), shape.share)
        ]
        for i in range(0, len(units), shape.images):
            yield units[i : i + shape.images], shape


def _codes(rows: pa.Table, names: tuple[str, ...]) -> np.ndarray:
    """One small integer for each distinct combination of values, in order of appearance."""
    code = np.zeros(len(rows), np.int64)
    for name in names:
        encoded = rows[name].combine_chunks().dictionary_encode(null_encoding="encode")
        own = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        code = np.unique(code * (own.max() + 1) + own, return_inverse=True)[1]
    return code
