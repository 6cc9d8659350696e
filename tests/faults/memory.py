"""Memory under watch: what processes of a run have resident, a few times a second."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAUSE = 0.2  # seconds


def resident(processes: Iterable[psutil.Process]) -> float:
    """MiB of processes that live; what they share is Ray's object store, and is left out."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            used = process.memory_info()
            total += used.rss - getattr(used, "shared", 0)
    return total / 2**20


@contextmanager
def sampled(measure: Callable[[], float], seen: list[float] | None = None) -> Iterator[list[float]]:
    """Measures while a block runs, and adds that to what was `seen` before, or to a 0."""
    seen, over = [0.0] if seen is None else seen, threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE):
            seen.append(measure())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
