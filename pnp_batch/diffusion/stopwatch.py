"""How long a device works on something: calls that begin and end in, seconds out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of what is done while it runs.

    On CUDA it is the device's own time, and nothing waits for it before somebody asks.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._total = 0.0
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs it, also where what it measures raises."""
        if self._cuda:
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            try:
                yield
            finally:
                ended.record()
                self._open.append((begun, ended))
            return
        before = time.perf_counter()
        try:
            yield
        finally:
            self._total += time.perf_counter() - before

    def seconds(self) -> float:
        """All of it so far; waits for a device that is still at it."""
        for begun, ended in self._open:
            ended.synchronize()
            self._total += begun.elapsed_time(ended) / 1e3
        self._open.clear()
        return self._total
