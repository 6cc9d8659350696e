"""Whoever reads while another one writes: what was read that nobody had written."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pnp_batch.storage import Storage


@dataclass
class Reads:
    """How often a file was read, and how often it was none of the versions."""

    count: int = 0
    torn: int = 0


@contextmanager
def reading(storage: Storage, name: str, versions: Collection[bytes]) -> Iterator[Reads]:
    """Reads a file again and again for as long as the block lasts."""
    reads, ended = Reads(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            reads.count += 1
            reads.torn += storage.read(name) not in versions

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield reads
    finally:
        ended.set()
        watcher.join()
