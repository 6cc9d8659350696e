"""Which rows share a UNet batch: rows in, batches of fixed shape out.

A batch holds G guidance images with P rows each, and its shape (G, G x P) follows from the whole
manifest, never from what happens to be left to do; so does the cell of a row in it. A batch that
is not full is padded. On one device a row's bits depend on the shape of its batch and its cell
there, not on its neighbours, so they survive resumes and retries.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

DEFAULT_BATCH_SIZE = 10
# Where images are inverted ahead: rows that may come from one inversion, so that a block stays
# small, and inversions that a manifest is left in, so that all workers have some.
LARGEST_AHEAD, LEAST_INVERSIONS = 64, 16
# Rows with other values in any of these cannot share a UNet batch.
RECIPE = ("method", "shared")
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


@dataclass(frozen=True)
class Place:
    """Where a row stands in its batch, whichever other rows are there.

    Attributes:
        images, share: the shape of the batch.
        slot: the place of the row's guidance image among those that are inverted together.
        number: of the row among those of its image and recipe.
        ahead: batches whose images are inverted together.
    """

    images: int
    share: int
    slot: int
    number: int
    ahead: int = 1

    @property
    def shape(self) -> Shape:
        """The shape of the batch."""
        return Shape(self.images, self.share)

    @property
    def cell(self) -> int:
        """The row's index in the batch."""
        return self.slot % self.images * self.share + self.number % self.share


PLACE = tuple(field.name for field in fields(Place))


@dataclass(frozen=True)
class Places:
    """The places of many rows: for each field of `Place` an array, of int16 but for `number`."""

    images: np.ndarray
    share: np.ndarray
    slot: np.ndarray
    number: np.ndarray
    ahead: np.ndarray

    def of(self, rows: np.ndarray) -> Places:
        """The places of some rows, by index."""
        return Places(*(getattr(self, name)[rows] for name in PLACE))

    def on(self, table: pa.Table) -> pa.Table:
        """A table of these rows with their places as columns."""
        for name in PLACE:
            table = table.append_column(name, pa.array(getattr(self, name)))
        return table


def places(
    image: np.ndarray, recipe: np.ndarray, batch_size: int, *, ahead: bool = False
) -> Places:
    """Gives each row its place.

    An image's share is the largest number of rows it has over its recipes, in as few equal parts as
    fit a batch, so that its inversion has one shape however often the image is used. Images of one
    share are spread evenly over as few batches as possible. Both keep the padding small.

    Args:
        image, recipe: small integers, equal for rows of one guidance image and of one recipe.
        batch_size: rows that a batch may hold.
        ahead: invert as many images at once as take the memory of a batch, in which each row has
            two branches.
    """
    order = np.lexsort((recipe, image))
    image, recipe = image[order], recipe[order]
    new_image = np.diff(image, prepend=image[:1] - 1) != 0
    begins = np.flatnonzero(new_image | (np.diff(recipe, prepend=recipe[:1] - 1) != 0))
    sizes = np.diff(begins, append=len(image))  # rows of an image and recipe
    image_of = np.cumsum(new_image[begins]) - 1
    share = np.zeros(image_of[-1] + 1, np.int64)
    np.maximum.at(share, image_of, sizes)
    share = -(-share // -(-share // batch_size))  # ten rows in batches of eight are five and five
    with_share = np.bincount(share)[share]
    batches = -(-with_share // np.maximum(1, batch_size // share))
    images = -(-with_share // batches)
    together = np.minimum(LARGEST_AHEAD // (images * share), -(-batches // LEAST_INVERSIONS))
    together = np.clip(together, 1, 2 * share) if ahead else np.ones_like(images)
    # In the order of a run, whose blocks then hold each slot as often as any other.
    begun = np.argsort(np.minimum.reduceat(order, np.flatnonzero(new_image)))
    slot = np.empty_like(share)
    slot[begun] = _ranks(share[begun]) % (images * together)[begun]
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order)) - np.repeat(begins, sizes)
    found = [np.empty(len(order), np.int16) for _ in range(4)]
    for made, values in zip(found, (images, share, slot, together), strict=True):
        made[order] = np.repeat(values[image_of].astype(np.int16), sizes)
    return Places(found[0], found[1], found[2], number, found[3])


def with_places(rows: pa.Table, batch_size: int, *, ahead: bool = False) -> pa.Table:
    """Adds to each row of a table its place, as columns named as the fields of `Place`."""
    recipe = np.zeros(len(rows), np.int64)
    for own in (_codes(rows[name]) for name in RECIPE):
        recipe = recipe * (own.max() + 1) + own
    return places(_codes(rows["guidance"]), recipe, batch_size, ahead=ahead).on(rows)


def ordered(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Indices that sort rows: those of one image are neighbours, and so are images of one share."""
    first = np.full(int(image.max()) + 1, len(image), np.int32)
    np.minimum.at(first, image, np.arange(len(image), dtype=np.int32))
    return np.lexsort((first[image], share))


def cuts(
    image: np.ndarray, share: np.ndarray, images: np.ndarray, wanted: int, workers: int = 1
) -> list[int]:
    """Where to cut ordered rows into about `wanted` blocks, both ends included.

    A block holds a multiple of the `images` that are inverted together, so whole batches. The rows
    of one image stay in one block, unless they alone are more than a block should hold. The last of
    them, as many rows as all workers have in hand, are cut into their batches: in the end none
    waits longer for another than for one.
    """
    target = max(1, -(-len(image) // max(1, wanted)))
    made = _cut(image, share, images, target)
    if workers > 1:
        largest = int(np.diff(made).max())
        kept = [n for n in made if n <= len(image) - workers * largest] or [0]
        last = slice(kept[-1], None)
        made = kept + [kept[-1] + n for n in _cut(image[last], share[last], images[last], 1)[1:]]
    return made


def _cut(image: np.ndarray, share: np.ndarray, images: np.ndarray, target: int) -> list[int]:
    """Where to cut ordered rows into blocks of about `target` rows."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(image)) + 1, [len(image)]])
    made, held = [0], 0
    for start, end in itertools.pairwise(map(int, starts)):
        begun = made[-1]
        full = start - begun >= target and held % images[start] == 0
        if start > begun and (full or share[start] != share[begun]):
            made.append(start)
            held = 0
        piece = -(-target // int(share[start])) * int(share[start])
        spare = piece - 1 if target > 1 else 0  # rather than a small block more
        while end - made[-1] > piece + spare and made[-1] >= start:
            made.append(made[-1] + piece)
        held += 1
    return [*made, len(image)]


class Packable(Protocol):
    """What `pack` needs to know of a row."""

    @property
    def guidance(self) -> str:
        """Names the guidance image."""

    @property
    def recipe(self) -> tuple[object, ...]:
        """Rows with another one cannot share a batch."""

    @property
    def place(self) -> Place:
        """Where the row stands in its batch."""


@dataclass(frozen=True)
class Grid(Generic[R]):
    """A batch: one cell for each row of its shape, None where there is nothing to do."""

    shape: Shape
    cells: tuple[R | None, ...]

    @property
    def rows(self) -> list[R]:
        """The rows in it."""
        return [row for row in self.cells if row is not None]

    @property
    def slots(self) -> list[list[R]]:
        """For each image of the shape, its rows."""
        share = self.shape.share
        cut = [self.cells[i : i + share] for i in range(0, len(self.cells), share)]
        return [[row for row in own if row is not None] for own in cut]

    def only(self, row: R) -> Grid[R]:
        """The same batch with no other row in it."""
        return Grid(self.shape, tuple(cell if cell is row else None for cell in self.cells))


def pack(rows: Iterable[R]) -> Iterator[Grid[R]]:
    """Packs rows into batches, each row in its own cell, all rows of a batch of one recipe."""
    classes: dict[tuple[object, ...], dict[int, dict[tuple[str, int], list[R]]]] = {}
    for row in rows:
        place = row.place
        slots = classes.setdefault((place.shape, row.recipe), {})
        unit = (row.guidance, place.number // place.share)
        slots.setdefault(place.slot % place.images, {}).setdefault(unit, []).append(row)
    for slots in classes.values():
        for units in itertools.zip_longest(*(list(own.values()) for own in slots.values())):
            present = [row for unit in units if unit for row in unit]
            shape = present[0].place.shape
            by_cell = {row.place.cell: row for row in present}
            yield Grid(shape, tuple(by_cell.get(cell) for cell in range(shape.rows)))


def _ranks(codes: np.ndarray) -> np.ndarray:
    """For each element, how many equal ones stand before it."""
    order = np.argsort(codes, kind="stable")
    ordered_codes = codes[order]
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.searchsorted(ordered_codes, ordered_codes)
    return ranks


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """One small integer for each distinct value, in order of appearance."""
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices, np.int64)
