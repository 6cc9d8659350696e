"""Parts: the files that results consist of. Rows in, files named by the digest of their bytes out.

A reader sees when the bytes are not what was written. Parts are read in their order and a few at a
time: of a million rows, memory holds no more than of few.

Small parts are merged while others write and read: their rows go into new parts, and only then do
they go away. A merged part's name has never been there before, so whoever deletes a name deletes
what was read under it, and the latest part that holds a row is never deleted: two who merge the
same parts at the same time lose nothing either.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.storage import Storage, StorageUnavailable

FOLDER = "results"
# Rows that are decoded at a time, of a part that has more.
ROWS_A_GROUP = 10_000
# A part of so many bytes is whole; smaller ones are worth merging. Bytes, not rows, as these are
# what a reader and a writer hold of a part: of a run's own columns 100,000 rows take about as many.
WHOLE_BYTES = 16 * 2**20
# Parts that are in memory at a time, and about how many bytes of such files.
READERS, AHEAD_BYTES = 16, 8 * 2**20
# Bytes that change on the way are read again; those that are rotten stay so.
CHANCES = 3
LISTINGS = 2
T = TypeVar("T")
Made = Callable[[pq.ParquetFile], T]


class PartGone(Exception):
    """A part is not there any more: it was merged, and newer parts hold its records."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def write_part(storage: Storage, rows: pa.Table) -> str:
    """Writes rows as one part, whole or not at all; its name. Written twice it is the same file."""
    data = _encoded(iter([rows]), rows.schema)
    name = _name(data)
    storage.write(name, data)
    return name


def write_merged(storage: Storage, tables: Iterable[pa.Table], schema: pa.Schema) -> list[str]:
    """Writes rows as parts of about `WHOLE_BYTES`, the last one of fewer; their names, all new.

    Args:
        storage: the output.
        tables: of rows, in any portions; their columns are some of the schema's.
        schema: of the parts.
    """
    names, groups = [], _groups(tables, schema)
    for first in groups:
        data = _encoded(chain([first], groups), schema)
        names.append(_name(data, f".{uuid.uuid4().hex[:8]}"))
        storage.write(names[-1], data)
    return names


def _encoded(groups: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """The file of as many groups of rows as make a whole part."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group)
            if buffer.tell() >= WHOLE_BYTES:
                break
    return buffer.getvalue()


def _groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of this schema and of `ROWS_A_GROUP` rows, the last one of fewer."""
    pending, count = [schema.empty_table()], 0
    for table in tables:
        pending.append(table)
        count += len(table)
        while count >= ROWS_A_GROUP:
            whole = pa.concat_tables(pending, promote_options="default")
            yield whole.slice(0, ROWS_A_GROUP)
            pending, count = [whole.slice(ROWS_A_GROUP)], count - ROWS_A_GROUP
    if count:
        yield pa.concat_tables(pending, promote_options="default")


def _name(data: bytes, mark: str = "") -> str:
    return f"{FOLDER}/part-{hashlib.sha256(data).hexdigest()[:24]}{mark}.parquet"


def parts(storage: Storage) -> list[str]:
    """The names of the parts of an output, sorted."""
    return [name for name in storage.files(FOLDER) if name.endswith(".parquet")]


def small_parts(storage: Storage) -> dict[str, int]:
    """The parts of an output that are not whole: their bytes, by their names."""
    there = storage.sizes(FOLDER).items()
    return {n: size for n, size in there if n.endswith(".parquet") and size < WHOLE_BYTES}


def delete_parts(storage: Storage, names: Iterable[str]) -> None:
    """Removes parts whose records stand in newer ones, many at a time and in no order."""
    with ThreadPoolExecutor(READERS) as hands:
        list(hands.map(storage.delete, names))


def every_part(storage: Storage, made: Made[T]) -> Iterator[tuple[str, T]]:
    """What is made of each part, by its name; no record is missed while parts are merged.

    A part that goes away meanwhile has left its records to new ones, so those are read too. A
    listing of many pages may miss both, the old one as it was gone when its page came, the new one
    as its page was over: so all is listed twice. Records may then be met twice.

    Raises:
        StorageUnavailable: a part is damaged, or is not there although it is listed.
    """
    read: set[str] = set()
    gone, passes = "", 0
    while passes < LISTINGS:
        names = [name for name in parts(storage) if name not in read]
        if gone in names:
            raise StorageUnavailable(
                f"{storage.uri}/{gone} is listed, but is not there",
                "run the same command again; delete that file if it stays so",
            )
        try:
            for name, found in zip(names, some_parts(storage, names, made), strict=True):
                read.add(name)
                yield name, found
        except PartGone as end:
            gone = end.name
        else:
            passes += 1


def some_parts(storage: Storage, names: Iterable[str], made: Made[T]) -> Iterator[T]:
    """What is made of each of these parts, in this order. Raises `PartGone`."""
    waiting, ahead = deque(names), deque[Future[tuple[int, T]]]()
    room, largest = 0, 1
    with ThreadPoolExecutor(READERS) as readers:
        while waiting or ahead:
            while waiting and len(ahead) < room:
                ahead.append(readers.submit(_made, storage, waiting.popleft(), made))
            # Large ones are read here: each thread would keep the memory that it has once needed.
            if ahead:
                size, found = ahead.popleft().result()
            else:
                size, found = _made(storage, waiting.popleft(), made)
            largest = max(largest, size)
            room = min(READERS, AHEAD_BYTES // largest) - 1
            yield found


def _made(storage: Storage, name: str, made: Made[T]) -> tuple[int, T]:
    for _ in range(CHANCES):
        data = storage.read_if_there(name)
        if data is None:
            raise PartGone(name)
        if _name(data) == f"{name.partition('.')[0]}.parquet":  # without its mark
            return len(data), made(pq.ParquetFile(pa.BufferReader(data)))
    raise StorageUnavailable(
        f"{storage.uri}/{name} is not the file that was written there",
        "delete that file and run the same command again: it does those rows anew",
    )
