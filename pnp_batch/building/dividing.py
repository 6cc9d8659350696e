"""Manifests out of a manifest: parts of it, and samples; every row keeps its id, hence its picture.

A part has the format of the whole. Large manifests pass through some rows at a time.
"""

from __future__ import annotations

import heapq
import posixpath
import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.building.counts import guidance
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt
from pnp_batch.building.target import Built, Target
from pnp_batch.manifest import LISTED, Manifest, read
from pnp_batch.manifest.places import kind_of
from pnp_batch.rows import identified
from pnp_batch.storage import absolute


def split(uri: str, parts: int, folder: str, *, force: bool = False) -> list[Built]:
    """Writes a manifest as so many, `part-000.parquet` and so on, of about equally many pictures.

    Rows of one guidance image stay together, so that it is inverted once.

    Raises:
        InvalidManifest: the manifest cannot be read.
        NotBuilt: there are fewer guidance images than parts, or a part is there already.
    """
    manifest = read(uri)
    targets = [
        Target(posixpath.join(folder, f"part-{number:03d}.{_kind(manifest)}"), force)
        for number in range(parts)
    ]
    whole = _Whole(manifest, folder)
    images, part_of = _balanced(whole, parts)
    if len(images) < parts:
        raise NotBuilt(
            f"{uri}: {len(images)} guidance images for {parts} parts", f"use -n {len(images)}"
        )
    with ExitStack() as stack:
        writers = [stack.enter_context(target.writer(whole.schema)) for target in targets]
        for rows, keys in whole.rows():
            table, numbers = whole.restored(rows), part_of[np.searchsorted(images, keys)]
            for number in np.unique(numbers):
                writers[number].add(table.filter(numbers == number))
    return [
        target.built(writer.counts, whole.pictures)
        for target, writer in zip(targets, writers, strict=True)
    ]


def sample(uri: str, count: int, target: Target, *, seed: int = 0) -> Built:
    """Writes so many rows of a manifest, drawn with a seed, in their order; all if it has fewer.

    Raises:
        InvalidManifest: the manifest cannot be read.
        NotBuilt: the target is of another format.
    """
    manifest = read(uri)
    if kind_of(target.output) != _kind(manifest):
        raise NotBuilt(
            f"{target.output}: {uri} is {_kind(manifest)}",
            f"use an --output that ends in .{_kind(manifest)}",
        )
    total = sum(file.count for file in manifest.files)
    chosen = np.zeros(total, bool)
    chosen[random.Random(seed).sample(range(total), min(count, total))] = True
    whole = _Whole(manifest, target.base)

    def tables() -> Iterator[pa.Table]:
        begun = 0
        for rows, _ in whole.rows():
            some = rows.filter(chosen[begun : begun + len(rows)])
            begun += len(rows)
            if len(some):
                yield whole.restored(some)

    return target.write_tables(whole.schema, tables(), whole.pictures)


def _kind(manifest: Manifest) -> str:
    return kind_of(manifest.files[0].where) or "parquet"


def _balanced(whole: _Whole, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The guidance images, ascending, and the part of each: the next one goes where is least."""
    every = np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in whole.rows())])
    images, firsts, sizes = np.unique(every, return_index=True, return_counts=True)
    load = [(0, number) for number in range(parts)]
    part_of = np.empty(len(images), np.int32)
    for place in np.argsort(firsts):
        least, number = load[0]
        heapq.heapreplace(load, (least + int(sizes[place]), number))
        part_of[place] = number
    return images, part_of


class _Whole:
    """A manifest's rows as its parts in another folder have them.

    Args:
        manifest: the whole.
        folder: where the parts will lie.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self._manifest = manifest
        self._moves = absolute(folder) != manifest.base
        self._place = lru_cache(100_000)(self._moved)
        self.pictures = Pictures(manifest.base, folder)
        kinds = [file.parsed.schema for file in manifest.files]
        self._embeds = any(pa.types.is_struct(kind.field("image").type) for kind in kinds)
        lists = {_is_list(kind.field("prompt").type) for kind in kinds}
        # JSON Lines tells row by row.
        self._lists = None if _kind(manifest) == "jsonl" else lists == {True}
        if len(lists) > 1 and self._lists is not None:
            raise NotBuilt(
                f"{manifest.uri}: some of its files have lists of prompts, some have not",
                "split or sample them one by one",
            )

    def rows(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """All rows with their ids, checked, and a number that names the guidance image of each."""
        for batch, ids in identified(self._manifest):
            own = {name: batch[name] for name in batch.schema.names if name != "row_id"}
            table = pa.table({"row_id": pa.array(ids, pa.string()), **own})
            yield table, guidance(table)[0]

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the parts: of the whole, with `row_id`."""
        fields = [field for field in self._manifest.schema if field.name != "row_id"]
        schema = pa.schema([("row_id", pa.string()), *fields])
        return self._as_given(schema.empty_table()).schema

    def restored(self, table: pa.Table) -> pa.Table:
        """Checked rows as they were before, their images named from the parts' folder."""
        return self._as_given(table).cast(self.schema)

    def _as_given(self, table: pa.Table) -> pa.Table:
        columns = {name: table[name] for name in table.column_names}
        columns["image"] = self._images(table["image"])
        if self._lists is not None:
            del columns[LISTED]
            if not self._lists:
                columns["prompt"] = pc.list_element(table["prompt"], 0)
        return pa.table(columns)

    def _images(self, column: pa.ChunkedArray) -> pa.Array:
        images = column.combine_chunks()
        paths, data = (pc.struct_field(images, part) for part in ("path", "bytes"))
        if self._moves:
            told = zip(paths.to_pylist(), pc.is_null(data).to_pylist(), strict=True)
            moved = [self._place(path) if path and alone else path for path, alone in told]
            paths = pa.array(moved, pa.string())
        if not self._embeds:
            return paths
        return pa.StructArray.from_arrays([data, paths], names=["bytes", "path"])

    def _moved(self, path: str) -> str:
        if "://" in path:
            return path
        try:
            return self.pictures.reference(path)
        except NotBuilt:  # another root's, or a bad row, which stays one
            return posixpath.join(self._manifest.base, path)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
