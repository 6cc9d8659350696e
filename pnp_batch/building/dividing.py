"""Manifests out of a manifest: parts of it, and samples; every row keeps its id, hence its picture.

A part has the format of the whole. Large manifests pass through some rows at a time.
"""

from __future__ import annotations

import heapq
import posixpath
import random
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from pnp_batch.building.refusal import NotBuilt
from pnp_batch.building.target import Built, Target
from pnp_batch.building.whole import Whole
from pnp_batch.manifest import read
from pnp_batch.manifest.places import kind_of


def split(uri: str, parts: int, folder: str, *, force: bool = False) -> list[Built]:
    """Writes a manifest as so many, `part-000.parquet` and so on, of about equally many pictures.

    Rows of one guidance image stay together, so that it is inverted once.

    Raises:
        InvalidManifest: the manifest cannot be read.
        NotBuilt: there are fewer guidance images than parts, or a part is there already.
    """
    whole = Whole(read(uri), folder)
    targets = [
        Target(posixpath.join(folder, f"part-{number:03d}.{whole.kind}"), force)
        for number in range(parts)
    ]
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
    whole = Whole(manifest, target.base)
    if kind_of(target.output) != whole.kind:
        raise NotBuilt(
            f"{target.output}: {uri} is {whole.kind}", f"use an --output that ends in .{whole.kind}"
        )
    total = sum(file.count for file in manifest.files)
    chosen = np.zeros(total, bool)
    chosen[random.Random(seed).sample(range(total), min(count, total))] = True

    def tables() -> Iterator[pa.Table]:
        begun = 0
        for rows, _ in whole.rows():
            some = rows.filter(chosen[begun : begun + len(rows)])
            begun += len(rows)
            if len(some):
                yield whole.restored(some)

    return target.write_tables(whole.schema, tables(), whole.pictures)


def _balanced(whole: Whole, parts: int) -> tuple[np.ndarray, np.ndarray]:
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
