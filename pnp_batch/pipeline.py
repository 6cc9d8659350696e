"""The run: a job in, an output of images and results out.

Checks the job, takes the output's lease, settles what the cluster gives, lets the graph work and
tells how far it is. Rows whose results are recorded are done; running the same job again does the
others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pnp_batch import clock, cluster, lease, rates, record, results
from pnp_batch.compaction import Compaction
from pnp_batch.config import RunConfig
from pnp_batch.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TOO_MANY_FAILED,
    JobError,
)
from pnp_batch.execution import Execution
from pnp_batch.job import Job, prepare
from pnp_batch.lease import Lease
from pnp_batch.metrics import WORKER_MS
from pnp_batch.record import Record
from pnp_batch.resources import Resources, resources
from pnp_batch.results import Summary
from pnp_batch.spending import each_takes
from pnp_batch.stages import PARTS, Reading, Work
from pnp_batch.storage import Storage
from pnp_batch.translation import Translation

RECORD_SECONDS = 5.0
COUNTED = ("cached", "inverted", "damaged", "unet_seconds", "worker_seconds")


class Interrupted(JobError):
    """Stopped at once: on a second signal, or because what was in flight took too long."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class Progress:
    """Where a run is: how its output stands, and what this run alone has done of it.

    Attributes:
        damaged: entries of the latent cache that could not be trusted and were replaced.
        again: rows tried again, as the worker that translated them died.
        unet_seconds: that workers have spent in the UNet.
        worker_seconds: that workers were there, all of them together.
        quiet: seconds since a row was recorded.
        in_flight: images and rows that are worked on now, the oldest first.
    """

    total: int
    done: int
    failed: int
    phase: str
    cached: int = 0
    inverted: int = 0
    damaged: int = 0
    again: int = 0
    unet_seconds: float = 0.0
    worker_seconds: float = 0.0
    session_done: int = 0
    seconds: float = 0.0
    quiet: float = 0.0
    in_flight: tuple[str, ...] = ()


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

    def waiting() -> None:
        say(_progress(job, begun, "waiting for another run to end"))

    with lease.held(job.output, wait=config.wait, waiting=waiting) as mine:
        if mine.waited:
            job = prepare(config, only_failed=only_failed)
        # The checks gave up early on a storage that cannot be used; from here on it may fail.
        patient = Storage(job.config.output, job.config.storage_patience)
        job = replace(job, output=patient)
        _sweep(job)
        if not len(job.todo):
            return _nothing_to_do(job, begun)
        if _is_spent(job, 0.0):
            told = f"{job.spent_seconds / 3600:.4g} hours of workers are spent on {job.output.uri}"
            raise Interrupted(told, "run the job with more --budget-hours to go on")
        say(_progress(job, begun, "starting Ray"))
        with cluster.connected(job.config.address, job.config.most_workers):
            result = _run(job, mine, begun, say)
        _sweep(job)  # of workers that died on the way
        return result


def _nothing_to_do(job: Job, begun: float) -> RunResult:
    """Ends what a run that was killed after its last row could not."""
    results.settle(job.output)
    result = _result(job, record.DONE, _progress(job, begun, record.DONE))
    there = record.read(job.output)
    if there is not None and there.state != record.DONE:
        now, summary = clock.now(), result.summary
        ended = replace(there, state=record.DONE, updated_at=now, finished_at=now)
        record.write(job.output, replace(ended, done=summary.done, failed=summary.failed))
    return result


def _sweep(job: Job) -> None:
    """Removes what killed writers have left, here and in a cache apart."""
    job.output.sweep()
    if job.config.cache and job.config.cache_uri:
        Storage(job.config.cache_uri).sweep()


def _run(job: Job, mine: Lease, begun: float, say: Listener) -> RunResult:
    """Runs a checked job on the connected cluster."""
    on = resources(job)
    job = job.in_batches_of(on.batch_size, ahead=on.device == "cuda")
    settings = {**job.settings, "device": on.device, "dtype": on.dtype}
    record.refuse_other(job.output, settings)
    journal = _Journal(job, settings, on)
    graph = Translation(job, _work(job, on), on)
    with Execution(graph) as execution, Compaction(job.output) as compaction:
        for _ in execution.watch():
            progress = _progress(job, begun, execution.phase, execution)
            say(progress)
            mine.check()
            compaction.look(execution.counts[PARTS])
            journal.keep(progress)
            if execution.signals > 1 or execution.draining > job.config.drain_timeout:
                journal.keep(progress, state=record.INTERRUPTED)
                raise Interrupted("stopped at once", "run the same command again to go on")
            if progress.failed > job.config.max_failed * job.total:
                execution.stop(record.STOPPED)
            if _is_spent(job, progress.worker_seconds):
                execution.stop(record.SPENT)
    mine.check()
    results.settle(job.output)
    progress = _progress(job, begun, execution.state, execution)
    result = _result(job, execution.state, progress)
    # The results know better than counts that may have died with Control.
    progress = replace(progress, done=result.summary.done, failed=result.summary.failed)
    rates.keep(journal.keep(progress, state=result.state))
    say(progress)
    if execution.error is not None:
        raise execution.error
    return replace(result, progress=progress)


def _is_spent(job: Job, seconds: float) -> bool:
    """Whether workers have had all their hours, those of earlier runs and so many seconds more."""
    budget = job.config.budget_hours
    return budget is not None and job.spent_seconds + seconds >= 3600 * budget


def _progress(job: Job, begun: float, phase: str, execution: Execution | None = None) -> Progress:
    counts: Mapping[str, int] = execution.counts if execution else {}
    ok, failed = counts.get(results.OK, 0), counts.get(results.ERROR, 0)
    return Progress(
        total=job.total,
        done=job.recorded.done + ok,
        failed=failed,  # whatever was recorded as failed is being done again
        phase=phase,
        cached=counts.get("cached", 0),
        inverted=counts.get("inverted", 0),
        damaged=counts.get("damaged", 0),
        again=counts.get("again", 0),
        unet_seconds=counts.get("unet_ms", 0) / 1000,
        worker_seconds=counts.get(WORKER_MS, 0) / 1000,
        session_done=ok + failed,
        seconds=time.monotonic() - begun,
        quiet=execution.quiet if execution else 0.0,
        in_flight=execution.seen.in_flight if execution else (),
    )


def _result(job: Job, state: str, progress: Progress) -> RunResult:
    summary = results.recorded(job.output).summary()
    if state == record.SPENT and summary.done + summary.failed == job.total:
        state = record.DONE  # with its last rows
    code = EXIT_INTERRUPTED if state in (record.INTERRUPTED, record.SPENT) else EXIT_OK
    if code == EXIT_OK and summary.failed > job.config.max_failed * job.total:
        code = EXIT_TOO_MANY_FAILED
    return RunResult(job.output.uri, state, code, job.total, summary, progress)


def _work(job: Job, on: Resources) -> Work:
    config, uri = job.config, job.config.cache_uri
    return Work(
        output=job.output,
        cache=None if uri is None else Storage(uri, config.storage_patience),
        model=job.model,
        device=on.device,
        dtype=on.dtype,
        threads=on.threads,
        memory_format=config.memory_format,
        attention=config.attention,
        compiled=config.compile,
        sampling=config.sampling,
        reading=Reading(job.policy, int(job.settings["resolution"]), config.fit),
        image_format=config.image_format,
        provenance=config.provenance,
        sink=config.sink,
        schema=job.schema,
        row_timeout=config.row_timeout,
    )


class _Journal:
    """Keeps `run.json` up to date while the run goes on."""

    def __init__(self, job: Job, settings: Mapping[str, Any], on: Resources) -> None:
        self._job = job
        self._row_tflop, self._inversion_tflop = each_takes(job)
        started = clock.now()
        self._record = Record(
            config=job.config.as_dict(),
            settings=settings,
            rows=job.total,
            done=job.recorded.done,
            started_at=started,
            updated_at=started,
            versions=record.versions(),
            workers=on.most_workers,
            accelerator=on.accelerator,
        )
        self._output = job.output
        self._written = time.monotonic()
        record.write(self._output, self._record)

    def keep(self, progress: Progress, state: str = record.RUNNING) -> Record:
        """Writes where the run is: every few seconds, and when it has ended. The latest record."""
        ended = state != record.RUNNING
        if not ended and time.monotonic() - self._written < RECORD_SECONDS:
            return self._record
        now = clock.now()
        counts = {name: getattr(progress, name) for name in COUNTED}
        made = progress.session_done * self._row_tflop + progress.inverted * self._inversion_tflop
        self._record = replace(
            self._record,
            state=state,
            done=progress.done,
            failed=progress.failed,
            session_done=progress.session_done,
            counts={**counts, "tflop": made},
            worker_seconds=self._job.spent_seconds + progress.worker_seconds,
            updated_at=now,
            finished_at=now if ended else None,
        )
        self._written = time.monotonic()
        record.write(self._output, self._record)
        return self._record
