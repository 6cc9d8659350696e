"""The listing of a job: a manifest in, its rows on disk and a small index of them out.

The rows lie in one Arrow file, from which any of them are taken without reading the others; in
memory a row costs a few dozen bytes, however long its prompt and large its embedded image are.
"""

from __future__ import annotations

import mmap
import shutil
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import rows
from pnp_batch.batches import RECIPE, Places
from pnp_batch.config import RunConfig
from pnp_batch.digest import digests
from pnp_batch.errors import InvalidManifest, JobError
from pnp_batch.manifest import Manifest
from pnp_batch.process import temporary_folder, trim_memory
from pnp_batch.storage import NO_SPACE

SHOWN = 3
# The bytes of an image stand with the first of neighbouring rows; the others name that row.
BYTES, HELD_BY = "image_bytes", "held by row"
# Where a row's guidance image comes from.
GENERATED, LINKED, EMBEDDED = range(3)
# What the index holds of a row.
WIDTHS = {
    "ids": np.uint64,
    "hashes": np.uint64,
    "guidance": np.uint64,
    "recipe": np.int32,
    "usable": np.bool_,
    "origin": np.uint8,
}


class NoRoom(JobError):
    """The disk of this machine has no room for the rows of a job."""


class RowFile:
    """Rows in an Arrow file, mapped and not read; those asked for are copied out of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with Path(path).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = pa.ipc.open_file(pa.py_buffer(self._map))
        batches = range(self._file.num_record_batches)
        lengths = [self._file.get_batch(index).num_rows for index in batches]
        self._starts = np.cumsum([0, *lengths])
        self._names = [name for name in self._file.schema.names if name != HELD_BY]
        self._release()

    def take(self, indices: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of some indices, in their order."""
        names = self._names if columns is None else list(columns)
        if BYTES not in names:
            return self._taken(indices, names)
        table = self._taken(indices, [*names, HELD_BY])
        elsewhere = table[HELD_BY].combine_chunks()
        if elsewhere.null_count < len(elsewhere):
            rows, place = np.unique(elsewhere.drop_null(), return_inverse=True)
            held = np.full(len(table), -1)
            held[elsewhere.is_valid()] = place
            images = self._taken(rows, [BYTES])[BYTES].take(pa.array(held, mask=held < 0))
            number = table.schema.get_field_index(BYTES)
            table = table.set_column(number, BYTES, pc.coalesce(table[BYTES], images))
        return table.select(names)

    def _taken(self, indices: np.ndarray, columns: list[str]) -> pa.Table:
        order = np.argsort(indices, kind="stable")
        wanted = indices[order]
        cuts = np.searchsorted(wanted, self._starts)
        parts = [self._batch(0, columns).slice(0, 0)]
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            own = wanted[cuts[number] : cuts[number + 1]] - self._starts[number]
            parts.append(self._batch(number, columns).take(pa.array(own)))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        taken = pa.Table.from_batches(parts).take(pa.array(back))
        self._release()
        return taken

    def chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows in their order, some at a time; bytes of images only where they stand."""
        for number in range(self._file.num_record_batches):
            yield pa.Table.from_batches([self._batch(number, columns)])
            self._release()

    def _batch(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        return self._file.get_batch(number).select(list(columns))

    def _release(self) -> None:
        # What was looked at would else count as this process's memory until it is short.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class Listing:
    """The rows that a manifest asks for.

    Attributes:
        file: the rows themselves; it is gone when the listing is.
        ids, hashes: uint64 digests of `row_id` and `row_hash` of each row.
        guidance: int32, equal for rows of one guidance image.
        recipe: int32, each row's index in `recipes`.
        usable: False for rows that have a problem.
        origin: `GENERATED`, `LINKED` or `EMBEDDED`.
        recipes: the distinct values of `RECIPE`; nulls for rows that are not usable.
    """

    def __init__(self, manifest: Manifest, config: RunConfig, methods: rows.Methods) -> None:
        """Expands a manifest.

        Raises:
            InvalidManifest: two rows have one `row_id`, or a file is damaged.
            NoRoom: this machine's disk is full.
        """
        folder = temporary_folder()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = str(Path(folder) / "rows.arrow")
        index = _Index()
        try:
            _write(path, index.noting(rows.expand(manifest, config, methods)))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise NoRoom(
                f"cannot keep the rows of {manifest.uri} in {folder}: {error.strerror}",
                "make room there, or name a folder with more in TMPDIR",
            ) from error
        self.file = RowFile(path)
        self.ids, self.hashes = index.column("ids"), index.column("hashes")
        self.usable, self.origin = index.column("usable"), index.column("origin")
        self.recipe, self.recipes = index.column("recipe"), index.recipes
        self.guidance = _numbered(index.column("guidance"))
        self._refuse_duplicates(manifest.uri)
        del index
        trim_memory()

    def __len__(self) -> int:
        return len(self.guidance)

    def forget_ids(self) -> None:
        """Lets `ids` and `hashes` go, once what is recorded has been compared with them."""
        del self.ids, self.hashes

    def _refuse_duplicates(self, where: str) -> None:
        ascending = np.sort(self.ids)
        if (ascending[1:] != ascending[:-1]).all():
            return
        order = np.argsort(self.ids, kind="stable")
        again = np.flatnonzero(self.ids[order[1:]] == self.ids[order[:-1]])
        starts = again[np.flatnonzero(np.diff(again, prepend=-2) > 1)]
        starts = starts[np.argsort(order[starts])]
        told = []
        for start in starts[:SHOWN].tolist():
            same = order[start : start + SHOWN]
            same = same[self.ids[same] == self.ids[same[0]]]
            names = self.file.take(same, ["row_id"])["row_id"].to_pylist()
            if len(set(names)) > 1:  # once in many million manifests of a million rows
                both = " and ".join(map(repr, names[:2]))
                raise InvalidManifest(f"{where}: row_ids {both} have one digest", "rename one")
            told.append(f"{names[0]!r} in rows " + ", ".join(map(str, same.tolist())))
        raise InvalidManifest(
            f"{where}: row_id is not unique: {len(starts)} of them stand twice: " + "; ".join(told),
            "make row_id unique, or leave the column out",
        )


@dataclass(frozen=True)
class Blocks:
    """The rows to do, in the order and the blocks in which they are done.

    Attributes:
        path: of the file of all rows, on the driver's machine.
        indices: of the rows to do in that file.
        places: of these rows.
        cuts: where a block ends and the next one begins, both ends of `indices` included.
    """

    path: str
    indices: np.ndarray
    places: Places
    cuts: list[int]

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def rows(self, file: RowFile, number: int) -> pa.Table:
        """The rows of one block, with their places."""
        own = np.arange(self.cuts[number], self.cuts[number + 1])
        return self.places.of(own).on(file.take(self.indices[own]))


def _write(path: str, tables: Iterator[pa.Table]) -> None:
    """Writes tables of one schema, of which there is at least one, into an Arrow file."""
    first = next(tables)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


class _Index:
    """Notes of each row what is needed to arrange it, in buffers that grow as the rows pass by."""

    def __init__(self) -> None:
        self._buffers = {name: bytearray() for name in WIDTHS}
        self._recipes: dict[tuple[Any, ...], int] = {}
        self._count = 0

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The distinct recipes in the order of their numbers."""
        return [dict(zip(RECIPE, recipe, strict=True)) for recipe in self._recipes]

    def column(self, name: str) -> np.ndarray:
        """One number of each row."""
        return np.frombuffer(self._buffers[name], WIDTHS[name])

    def noting(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Passes tables on."""
        for table in tables:
            embedded = pc.is_valid(table[BYTES]).to_numpy()
            linked = pc.is_valid(table["image"]).to_numpy()
            usable = pc.is_null(table["problem"])
            recipes = zip(*(_where(usable, table[name]) for name in RECIPE), strict=True)
            noted = {
                "ids": digests(table["row_id"]),
                "hashes": digests(table["row_hash"]),
                "guidance": digests(table["guidance"]),
                "usable": usable.to_numpy(),
                "origin": np.where(embedded, EMBEDDED, np.where(linked, LINKED, GENERATED)),
                "recipe": [self._recipes.setdefault(r, len(self._recipes)) for r in recipes],
            }
            for name, values in noted.items():
                self._buffers[name] += np.asarray(values, WIDTHS[name]).tobytes()
            yield _held_once(table, embedded, self._count)
            self._count += len(table)


def _where(usable: pa.ChunkedArray, values: pa.ChunkedArray) -> list[Any]:
    """Values of usable rows; what stands in others may be anything, such as no number."""
    chosen: list[Any] = pc.if_else(usable, values, None).to_pylist()
    return chosen


def _numbered(values: np.ndarray) -> np.ndarray:
    """A small integer for each distinct value."""
    order = np.argsort(values)
    values = values[order]
    numbers = np.empty(len(values), np.int32)
    numbers[order] = np.cumsum(np.append(False, values[1:] != values[:-1]), dtype=np.int32)
    return numbers


def _held_once(table: pa.Table, embedded: np.ndarray, begun: int) -> pa.Table:
    """Leaves the bytes of an image with its first row alone; `begun` rows stand before these."""
    codes = table["guidance"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1][codes]
    itself = first == np.arange(len(table))
    number = table.schema.get_field_index(BYTES)
    held = table[BYTES].take(pa.array(first, mask=~itself))
    table = table.set_column(number, BYTES, held)
    return table.append_column(HELD_BY, pa.array(begun + first, mask=itself | ~embedded))
