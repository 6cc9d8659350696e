"""A Ray Data graph at work, watched: what there is to do in, what has become of it out.

It runs in a thread of its own, while the main thread watches and takes signals.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Protocol

import ray

from pnp_batch import control, record, results
from pnp_batch.control import Blocks, Seen
from pnp_batch.errors import JobError
from pnp_batch.process import trim_memory

POLL_SECONDS = 0.2
# The driver's Ray keeps account of each block until a graph ends, so many are done in rounds, a
# graph each. Workers begin anew in each: it must last, with many of them as well.
BLOCKS_A_ROUND, BLOCKS_A_WORKER = 20_000, 1_000
ENDING_SECONDS = 3.0


class RunBroken(JobError):
    """The run ended before its rows did, through no fault of a row."""


class Graph(Protocol):
    """What an execution does.

    Attributes:
        doing: what a user would say that is done with the rows.
        workers: how many actors do it.
    """

    doing: str
    workers: int

    @property
    def metrics(self) -> tuple[str, int] | None:
        """The output and the number of rows that metrics are shown for, if any are."""

    def blocks(self) -> Blocks:
        """The rows to do, in blocks; asked for once."""

    def run(self, data: ray.data.Dataset, control: Any, count: int) -> None:  # noqa: ANN401
        """Does so many blocks, of which each row of `data` has the number of one; called again
        for more, where there are many.

        `control` is the handle of the actor that has the rows.
        """


class Execution:
    """A graph, from start to end; a context manager.

    Attributes:
        seen: counts and what is in flight, as of the latest look.
        quiet: seconds since a row was recorded.
        signals: how many have come.
        error: what broke the run, once it has ended.
        state: how it ended, one of `record`'s.
    """

    def __init__(self, graph: Graph) -> None:
        blocks = graph.blocks()
        self._count = len(blocks)
        # It has them from here on, this process has not.
        self._control: Any = control.start(blocks, graph.metrics)
        del blocks
        trim_memory()
        self._graph = graph
        self.seen = Seen()
        self.signals = 0
        self.error: JobError | None = None
        self.state = record.RUNNING
        self._before: Counter[str] = Counter()
        self._begun = False
        self._recorded_at = time.monotonic()
        self._stopping = ""
        self._stopped_at = 0.0
        self._thread = threading.Thread(target=self._run, name="pnp-batch-run", daemon=True)

    def __enter__(self) -> Execution:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ray.kill(self._control)
        # What still runs fails without Control. If Ray were shut down under it, Ray's native code
        # could end this process, before it has said why it stops.
        self._thread.join(ENDING_SECONDS)

    @property
    def counts(self) -> Counter[str]:
        """Rows by status and inversions by origin, since the start."""
        return self._before + Counter(self.seen.counts)

    @property
    def quiet(self) -> float:
        """Seconds since a row was recorded."""
        return time.monotonic() - self._recorded_at

    @property
    def draining(self) -> float:
        """Seconds since it was asked to stop; 0 if it was not."""
        return time.monotonic() - self._stopped_at if self._stopping else 0.0

    @property
    def phase(self) -> str:
        """What a user would say that is going on."""
        if self._stopping:
            return "finishing what is in flight"
        if self._begun:
            return self._graph.doing
        return "loading the model" if self.seen.workers else "waiting for workers"

    def watch(self) -> Iterator[None]:
        """Yields after each look at the graph until it has ended, then settles the state."""
        with _handling(self._on_signal):
            while self._thread.is_alive():
                self._look()
                if self.signals:
                    self.stop(record.INTERRUPTED)
                yield
                self._thread.join(POLL_SECONDS)
        self._look()
        self.state = record.BROKEN if self.error else self._stopping or record.DONE

    def stop(self, state: str) -> None:
        """Lets what is in flight finish and begins nothing new."""
        if not self._stopping:
            self._stopping, self._stopped_at = state, time.monotonic()
        ray.get(self._control.stop.remote())  # each time: a restarted Control does not know it

    def _look(self) -> None:
        seen: Seen = ray.get(self._control.seen.remote())
        ended = self._ended
        if seen.born != self.seen.born:
            self._before = self.counts
        self.seen = seen
        if self._ended != ended:
            self._recorded_at = time.monotonic()
        self._begun |= bool(seen.in_flight or self._ended)

    @property
    def _ended(self) -> int:
        return self.counts[results.OK] + self.counts[results.ERROR]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1  # the watching loop acts on it: a signal handler must not talk to Ray

    def _run(self) -> None:
        try:
            self._execute()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, the watcher reports it
            self.error = _as_job_error(error)

    def _execute(self) -> None:
        most = max(BLOCKS_A_ROUND, BLOCKS_A_WORKER * self._graph.workers)
        for begun in range(0, self._count, most):
            if self._stopping:
                return
            blocks = range(begun, min(begun + most, self._count))
            numbers = [{"block": number} for number in blocks]
            data = ray.data.from_items(numbers, override_num_blocks=len(numbers))
            self._graph.run(data, self._control, len(numbers))


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Takes Ctrl-C and the signal of a pre-emption, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _as_job_error(error: BaseException) -> JobError:
    """What broke the run, from within the layers that Ray wraps it in."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, JobError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    told = f"the run broke: {type(error).__name__}: {lines[-1].strip() if lines else ''}"
    broken = RunBroken(told, "run the same command again to go on; --debug shows where it broke")
    broken.__cause__ = error
    return broken
