"""Parts: the files that results consist of. Rows in, a file named by the digest of its bytes out.

Written twice it is the same file, and a reader sees when its bytes are not what was written. Parts
are read in their order and a few at a time: of a million rows, memory holds no more than of few.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.storage import Storage, StorageUnavailable

FOLDER = "results"
# Rows that are decoded at a time, of a part that has more.
ROWS_A_GROUP = 10_000
# Parts that are in memory at a time, and about how many bytes of such files.
READERS, AHEAD_BYTES = 16, 8 * 2**20
# Bytes that change on the way are read again; those that are rotten stay so.
CHANCES = 3
T = TypeVar("T")
Made = Callable[[pq.ParquetFile], T]


class PartGone(Exception):
    """A part is not there any more: a run has settled, and newer parts hold its records."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def write_part(storage: Storage, groups: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Writes rows of this schema as one part, whole or not at all; its name.

    Each table becomes a row group: encoded as it comes, and read alone.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group)
    data = buffer.getvalue()
    name = _name(data)
    storage.write(name, data)
    return name


def _name(data: bytes) -> str:
    return f"{FOLDER}/part-{hashlib.sha256(data).hexdigest()[:24]}.parquet"


def parts(storage: Storage) -> list[str]:
    """The names of the parts of an output, sorted."""
    return [name for name in storage.files(FOLDER) if name.endswith(".parquet")]


def every_part(storage: Storage, made: Made[T]) -> Iterator[tuple[str, T]]:
    """What is made of each part, by its name; no record is missed while a run settles.

    A part that goes away meanwhile has left its records to new ones, so those are read too.
    Records may then be met twice.

    Raises:
        StorageUnavailable: a part is damaged, or is not there although it is listed.
    """
    read: set[str] = set()
    gone = ""
    while True:
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
            return


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
        if _name(data) == name:
            return len(data), made(pq.ParquetFile(pa.BufferReader(data)))
    raise StorageUnavailable(
        f"{storage.uri}/{name} is not the file that was written there",
        "delete that file and run the same command again: it does those rows anew",
    )
