"""Progress for people: a live line on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pnp_batch.clock import duration
from pnp_batch.pipeline import Progress as RunProgress

PLAIN_SECONDS = 10.0
QUIET_SECONDS = 300.0


class Meter:
    """Turns the progress of a run into rate and time left, counted from its first row."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._before = 0

    def line(self, progress: RunProgress) -> str:
        """The numbers as one line of text."""
        parts = [f"{progress.done + progress.failed}/{progress.total} rows"]
        rate = self.rate(progress)
        left = progress.total - progress.done - progress.failed
        if rate and left:
            parts += [f"{rate:.2f} rows/s", f"ETA {duration(left / rate)}"]
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        if progress.cached or progress.inverted:
            parts.append(f"inversions: {progress.inverted} made, {progress.cached} cached")
        if progress.damaged:
            parts.append(f"{progress.damaged} damaged latents replaced")
        if progress.again:
            parts.append(f"{progress.again} again after a worker died")
        if progress.quiet > QUIET_SECONDS:
            parts.append(_silence(progress))
        return f"{progress.phase}: " + ", ".join(parts)

    def rate(self, progress: RunProgress) -> float | None:
        """Rows a second since the first rows of this run came out; None before that."""
        if not progress.session_done:
            self._first = None  # a run begins, which may be the next of several
            return None
        if self._first is None:
            self._first, self._before = progress.seconds, progress.session_done
        span = progress.seconds - self._first
        if span <= 0 or progress.session_done == self._before:
            return None
        return (progress.session_done - self._before) / span


def _silence(progress: RunProgress) -> str:
    """Says that nothing has ended for a long time, and what has been begun for as long."""
    told = f"nothing finished for {duration(progress.quiet)}"
    if not progress.in_flight:
        return told
    others = f" and {len(progress.in_flight) - 1} more" * (len(progress.in_flight) > 1)
    return f"{told}, in flight: {progress.in_flight[0]!r}{others}"


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Callable[[RunProgress], None]]:
    """Yields a listener for `run` that writes to `stream`, standard error if None."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _live(stream) as listener:
            yield listener
    else:
        yield _plain(stream)


@contextmanager
def _live(stream: TextIO) -> Iterator[Callable[[RunProgress], None]]:
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
    meter = Meter()
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=None)

        def listener(progress: RunProgress) -> None:
            bar.update(
                task,
                total=progress.total,
                completed=progress.done + progress.failed,
                description=meter.line(progress),
            )

        yield listener


def _plain(stream: TextIO) -> Callable[[RunProgress], None]:
    meter = Meter()
    phase, told = "", 0.0

    def listener(progress: RunProgress) -> None:
        nonlocal phase, told
        line, now = meter.line(progress), time.monotonic()
        if progress.phase != phase or now - told >= PLAIN_SECONDS:
            phase, told = progress.phase, now
            stream.write(line + "\n")
            stream.flush()

    return listener
