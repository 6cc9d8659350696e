"""The Ray Data graph at work: prepared rows in, images and results on storage.

    blocks to do -> load (CPU tasks) -> Translate (actors with the model) -> Sink (images, results)

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
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from pnp_batch import control, methods, record, results
from pnp_batch.batches import cuts, ordered
from pnp_batch.control import Seen
from pnp_batch.errors import JobError
from pnp_batch.job import Job
from pnp_batch.listing import Blocks
from pnp_batch.process import trim_memory
from pnp_batch.stages import Sink, Translate, Work, load

POLL_SECONDS = 0.2
ENDING_SECONDS = 3.0
BLOCKS_A_WORKER = 8
# What a crash may cost is a block: few rows where each takes the model, more where none does.
LARGEST_BLOCK, LARGEST_MODEL_BLOCK = 256, 16
LARGEST_BYTES = 32 * 2**20  # of a block's pixels
MOST_BLOCKS = 20_000


class RunBroken(JobError):
    """The run ended before its rows did, through no fault of a row."""


class Execution:
    """A run's graph, from start to end; a context manager.

    Attributes:
        seen: counts and what is in flight, as of the latest look.
        quiet: seconds since a row was recorded.
        signals: how many have come.
        error: what broke the run, once it has ended.
        state: how it ended, one of `record`'s.
    """

    def __init__(self, job: Job, work: Work, workers: int, gpus_per_worker: float) -> None:
        self._needs_model = _needs_model(job)
        blocks = _blocks(job, work, workers, needs_model=self._needs_model)
        self._count = len(blocks)
        self._control: Any = control.start(blocks)  # has them from here on, this process has not
        del blocks
        trim_memory()
        self._work = work
        self._workers = workers
        self._gpus_per_worker = gpus_per_worker
        self.seen = Seen()
        self.signals = 0
        self.error: JobError | None = None
        self.state = record.RUNNING
        self._before: Counter[str] = Counter()
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
        recorded = self.counts[results.OK] + self.counts[results.ERROR]
        return "translating" if recorded else "loading the model"

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
        if seen.born != self.seen.born:
            self._before = self.counts
        if dict(seen.counts) != dict(self.seen.counts):
            self._recorded_at = time.monotonic()
        self.seen = seen

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1  # the watching loop acts on it: a signal handler must not talk to Ray

    def _run(self) -> None:
        try:
            self._execute()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, the watcher reports it
            self.error = _as_job_error(error)

    def _execute(self) -> None:
        numbers = [{"block": number} for number in range(self._count)]
        stage = {"work": self._work, "control": self._control}
        data: ray.data.Dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        # Another share of a CPU than the actors' keeps Ray from fusing loading into them.
        data = data.map_batches(
            load,  # type: ignore[arg-type]  # its other arguments come from fn_kwargs
            fn_kwargs=stage,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=0.5,
        )
        # Ray restarts a dead actor and repeats its block for ever: `attempts` ends that.
        data = data.map_batches(
            Translate,
            fn_constructor_kwargs={**stage, "preload": self._needs_model},
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(
                size=min(self._workers, self._count),
                # Else the first actor that is ready takes blocks that others could begin at once.
                max_tasks_in_flight_per_actor=1 if self._needs_model else None,
            ),
            num_cpus=1,
            num_gpus=self._gpus_per_worker or None,
        )
        data.write_datasink(Sink(self._work, self._control), ray_remote_args={"num_cpus": 0.5})


def _needs_model(job: Job) -> bool:
    usable = job.todo[job.listing.usable[job.todo]]
    used = {job.listing.recipes[code]["method"] for code in np.unique(job.listing.recipe[usable])}
    return any(methods.get(name).uses_model for name in used)


def _blocks(job: Job, work: Work, workers: int, *, needs_model: bool) -> Blocks:
    """The rows to do in the order and the blocks in which they are done."""
    pixels = 3 * work.resolution**2
    largest = LARGEST_MODEL_BLOCK if needs_model else LARGEST_BLOCK
    largest = max(1, min(largest, LARGEST_BYTES // pixels))
    todo, image = job.todo, job.listing.guidance
    todo = todo[ordered(image[todo], job.places.share[todo])]
    places = job.places.of(todo)
    wanted = max(workers * BLOCKS_A_WORKER, min(len(todo) // largest, MOST_BLOCKS))
    ends = cuts(image[todo], places.share, places.images, wanted)
    return Blocks(job.listing.file.path, todo, places, ends)


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
