"""The run: a job in, an output of images and results out, through one Ray Data graph.

    rows to do -> load (CPU tasks) -> Translate (actors with the model) -> Sink (images, results)

Rows whose results are recorded are done; running the same job again does the others.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from pnp_batch import cluster, methods, record, results
from pnp_batch.batches import blocks, ordered
from pnp_batch.config import RunConfig
from pnp_batch.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TOO_MANY_FAILED,
    JobError,
)
from pnp_batch.job import Job, prepare
from pnp_batch.models import ModelFiles
from pnp_batch.record import Record
from pnp_batch.results import Summary
from pnp_batch.stages import Control, Sink, Translate, Work, load

POLL_SECONDS = 0.2
RECORD_SECONDS = 5.0
BLOCKS_A_WORKER = 8
LARGEST_BLOCK = 256
TASK_RETRIES = 2
# What an actor on a CPU needs: torch and diffusers, and weights stored in half precision that
# are computed in single, with room for activations.
BYTES_OF_PROCESS = 1 << 30
BYTES_A_WEIGHT = 3


class RunBroken(JobError):
    """The run ended before its rows did, through no fault of a row."""


class Interrupted(JobError):
    """Stopped at once, on a second signal."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class Progress:
    """Where a run is: how its output stands, and what this run alone has done of it."""

    total: int
    done: int
    failed: int
    cached: int
    inverted: int
    session_done: int
    seconds: float
    phase: str


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `exit_code` is what the command returns."""

    output: str
    state: str
    exit_code: int
    total: int
    summary: Summary
    progress: Progress


Listener = Callable[[Progress], None]


def run(
    config: RunConfig, listener: Listener | None = None, *, only_failed: bool = False
) -> RunResult:
    """Runs a job, or what is missing of it.

    Args:
        config: the job.
        listener: called with the progress, a few times a second.
        only_failed: do the rows recorded as failed again, and no others.

    Returns:
        How it ended; failed rows are data, in the results.

    Raises:
        JobError: the job cannot run or broke; rows recorded so far stay recorded.
    """
    begun = time.monotonic()
    job = prepare(config, only_failed=only_failed)
    say = listener or (lambda progress: None)
    if not len(job.todo):
        results.settle(job.output)
        return _result(job, record.DONE, _progress(job, {}, begun, record.DONE))
    say(_progress(job, {}, begun, "starting Ray"))
    with cluster.connected(job.config.address, job.config.workers):
        work, graph = _resolved(job)
        settings = {**job.settings, "device": work.device, "dtype": work.dtype}
        record.refuse_other(job.output, settings)
        journal = _Journal(job, settings)
        with _Execution(job, work, graph) as execution:
            for counts in execution.watch():
                progress = _progress(job, counts, begun, execution.phase)
                say(progress)
                journal.keep(progress)
                if execution.signals > 1:
                    journal.keep(progress, state=record.INTERRUPTED)
                    raise Interrupted("stopped at once", "run the same command again to go on")
                if progress.failed > job.config.max_failed * job.total:
                    execution.stop(record.STOPPED)
        progress = _progress(job, execution.counts, begun, execution.state)
        results.settle(job.output)
        journal.keep(progress, state=execution.state)
        say(progress)
    if execution.error is not None:
        raise execution.error
    return _result(job, execution.state, progress)


def _progress(job: Job, counts: Mapping[str, int], begun: float, phase: str) -> Progress:
    ok, failed = counts.get(results.OK, 0), counts.get(results.ERROR, 0)
    return Progress(
        total=job.total,
        done=job.recorded.done + ok,
        failed=failed,  # whatever was recorded as failed is being done again
        cached=counts.get("cached", 0),
        inverted=counts.get("inverted", 0),
        session_done=ok + failed,
        seconds=time.monotonic() - begun,
        phase=phase,
    )


def _result(job: Job, state: str, progress: Progress) -> RunResult:
    table = results.read(job.output, ["row_id", "status", "error_type", "error_message"])
    summary = results.summarise(table)
    code = EXIT_INTERRUPTED if state == record.INTERRUPTED else EXIT_OK
    if code == EXIT_OK and summary.failed > job.config.max_failed * job.total:
        code = EXIT_TOO_MANY_FAILED
    return RunResult(job.output.uri, state, code, job.total, summary, progress)


@dataclass(frozen=True)
class _Graph:
    """What the graph asks of the cluster."""

    workers: int
    gpus_per_worker: float


@ray.remote
def _has_bfloat16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _resolved(job: Job) -> tuple[Work, _Graph]:
    """Settles device, dtype and number of actors from what the cluster has."""
    config, available = job.config, cluster.gpus()
    device = config.device
    if device == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        device = "cuda" if available else "mps" if apple and not config.address else "cpu"
    if device == "cuda" and not available:
        raise RunBroken("--device cuda, but the cluster has no GPU", "use --device cpu")
    share = (config.gpus_per_worker or 1.0) if device == "cuda" else 0.0
    workers = config.workers or _auto_workers(job.model, available, share)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32"
        if device == "cuda":
            probe = _has_bfloat16.options(num_gpus=share).remote()
            dtype = "bfloat16" if ray.get(probe) else "float16"
    work = Work(
        output=job.output.uri,
        cache=config.cache_uri,
        model=job.model,
        device=device,
        dtype=dtype,
        threads=max(1, cluster.cores() // workers),
        steps=config.steps,
        inversion_steps=config.inversion,
        resolution=int(job.settings["resolution"]),
        fit=config.fit,
        image_format=config.image_format,
        schema=job.schema,
        policy=job.policy,
    )
    return work, _Graph(workers, share)


def _needs_model(rows: pa.Table) -> bool:
    known = set(methods.names())
    used = set(rows.filter(pc.is_null(rows["problem"]))["method"].to_pylist()) & known
    return any(methods.get(name).uses_model for name in used)


def _auto_workers(model: ModelFiles, available: float, share: float) -> int:
    """One actor for each GPU share; on CPUs one for each core, as far as memory reaches."""
    if share:
        return max(1, int(available / share))
    # Single-threaded actors do more together than threads do for one of them.
    needed = BYTES_OF_PROCESS + BYTES_A_WEIGHT * model.weight_bytes
    memory = ray.cluster_resources().get("memory", 0.0)
    return max(1, min(cluster.cores(), int(memory * 0.8 / needed)))


class _Execution:
    """The graph at work in a thread of its own, while this one watches and takes signals."""

    def __init__(self, job: Job, work: Work, graph: _Graph) -> None:
        self._job, self._work, self._graph = job, work, graph
        self.counts: dict[str, int] = {}
        self.error: JobError | None = None
        self.state = record.RUNNING
        self._stopping = ""
        self.signals = 0
        self._control: Any = None
        self._thread = threading.Thread(target=self._run, name="pnp-batch-run", daemon=True)

    def __enter__(self) -> _Execution:
        self._control = Control.remote()  # type: ignore[attr-defined]
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ray.kill(self._control)

    @property
    def phase(self) -> str:
        """What a user would say that is going on."""
        if self._stopping:
            return "finishing what is in flight"
        seen = self.counts.get(results.OK, 0) + self.counts.get(results.ERROR, 0)
        return "translating" if seen else "loading the model"

    def watch(self) -> Iterator[dict[str, int]]:
        """Yields the counts until the graph has ended, and settles the state."""
        with _handling(self._on_signal):
            while self._thread.is_alive():
                self.counts = ray.get(self._control.counts.remote())
                if self.signals:
                    self.stop(record.INTERRUPTED)
                yield self.counts
                self._thread.join(POLL_SECONDS)
        self.counts = ray.get(self._control.counts.remote())
        self.state = record.BROKEN if self.error else self._stopping or record.DONE

    def stop(self, state: str) -> None:
        """Lets what is in flight finish and begins nothing new."""
        if not self._stopping:
            self._stopping = state
            ray.get(self._control.stop.remote())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1  # the watching loop acts on it: a signal handler must not talk to Ray

    def _run(self) -> None:
        try:
            self._execute()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, the watcher reports it
            self.error = _as_job_error(error)

    def _execute(self) -> None:
        work, graph = self._work, self._graph
        rows = ordered(self._job.todo)
        wanted = max(graph.workers * BLOCKS_A_WORKER, len(rows) // LARGEST_BLOCK)
        pieces = blocks(rows, wanted)
        data: ray.data.Dataset = ray.data.from_arrow(pieces)
        # Another share of a CPU than the actors' keeps Ray from fusing loading into them.
        data = data.map_batches(
            load,  # type: ignore[arg-type]  # its second argument comes from fn_kwargs
            fn_kwargs={"work": work, "control": self._control},
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=0.5,
        )
        with warnings.catch_warnings():
            # Ray has no other way yet to bound how often a block that kills its actor is retried.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            data = data.map_batches(
                Translate,
                fn_constructor_kwargs={
                    "work": work,
                    "control": self._control,
                    "preload": _needs_model(rows),
                },
                batch_format="pyarrow",
                batch_size=None,
                compute=ActorPoolStrategy(size=min(graph.workers, len(pieces))),
                num_cpus=1,
                num_gpus=graph.gpus_per_worker or None,
                max_task_retries=TASK_RETRIES,
            )
        data.write_datasink(Sink(work, self._control), ray_remote_args={"num_cpus": 0.5})


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


class _Journal:
    """Keeps `run.json` up to date while the run goes on."""

    def __init__(self, job: Job, settings: Mapping[str, Any]) -> None:
        self._job = job
        started = record.now()
        self._record = Record(
            config=job.config.as_dict(),
            settings=settings,
            rows=job.total,
            done=job.recorded.done,
            started_at=started,
            updated_at=started,
            versions=record.versions(),
        )
        self._written = time.monotonic()
        record.write(job.output, self._record)

    def keep(self, progress: Progress, state: str = record.RUNNING) -> None:
        """Writes where the run is: every few seconds, and when it has ended."""
        ended = state != record.RUNNING
        if not ended and time.monotonic() - self._written < RECORD_SECONDS:
            return
        now = record.now()
        self._record = replace(
            self._record,
            state=state,
            done=progress.done,
            failed=progress.failed,
            session_done=progress.session_done,
            counts={"cached": progress.cached, "inverted": progress.inverted},
            updated_at=now,
            finished_at=now if ended else None,
        )
        self._written = time.monotonic()
        record.write(self._job.output, self._record)
