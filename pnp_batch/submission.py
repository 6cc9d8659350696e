"""Submission: a job in; the same job on a Ray cluster, through the Ray Jobs API, out.

The cluster needs Ray and this package's dependencies, such as in the project's image; the package
itself goes with the job, and the job is the command that `run` would be. An output has one job at a
time: its name is made of the output's. Submitted again, it is attached to while it runs, and goes
on with what is missing once it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnp_batch import __version__, given, job
from pnp_batch.config import RunConfig
from pnp_batch.errors import (
    EXIT_BROKEN,
    EXIT_INTERRUPTED,
    EXIT_OK,
    InvalidConfig,
    JobError,
    did_you_mean,
)
from pnp_batch.identity import sha256
from pnp_batch.process import SUBMITTED
from pnp_batch.storage import absolute

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

PREFIX = "pnp-"
_ID = re.compile(rf"({PREFIX}[0-9a-f]{{12}})-(\d+)")
PENDING, RUNNING, STOPPED, SUCCEEDED = "PENDING", "RUNNING", "STOPPED", "SUCCEEDED"
GOING_ON = (PENDING, RUNNING)
POLL_SECONDS = 1.0
# A dashboard answers before the head takes jobs.
_NOT_READY, READY_SECONDS = "No available agent", 120.0
# A job that has begun to stop drains; Ray kills it after this, beyond the drain.
STOP_MARGIN_SECONDS = 15
# Ray's variables that beat the address that is asked for.
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
# The actor of a job, which a pending one waits for.
_ACTOR, _NAMESPACE = "_ray_internal_job_actor_{id}", "SUPERVISOR_ACTOR_RAY_NAMESPACE"
_KILLED = "it was killed by `ray.kill`"
_KILL = "import ray; ray.init(); ray.kill(ray.get_actor({name!r}, namespace={space!r}))"


class NoJobs(JobError):
    """The Ray Jobs API cannot be reached, or refuses."""


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster.

    Attributes:
        id: its submission id.
        state: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`.
        exit_code: of its driver; None while it goes on.
        message: what Ray says of it.
        output: that it writes to.
        started, ended: in seconds since 1970, None if it has not.
    """

    id: str
    state: str
    exit_code: int | None
    message: str
    output: str
    started: float | None
    ended: float | None

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.state in GOING_ON

    @property
    def number(self) -> int:
        """Among the jobs of its output."""
        return int(self.id.rpartition("-")[2])


def prepared(config: RunConfig, *, check: bool = True) -> RunConfig:
    """A job as it can be submitted, with absolute paths.

    Args:
        config: the job; its `address` is that of the Jobs API, `http://HOST:8265`.
        check: look at manifest, model and output, from here.

    Raises:
        InvalidManifest, InvalidConfig, InvalidModel, OutputMismatch: `run` would refuse it.
    """
    if not config.address:
        raise InvalidConfig("no address of a cluster", "use --address http://HOST:8265")
    config = job.anchored(config)
    if check:
        job.prepare(config)
    return config


def job_name(output: str) -> str:
    """What the jobs of an output are called, but for their number."""
    return PREFIX + sha256(output.rstrip("/").encode())[:12]


class Jobs:
    """The jobs of this package on a cluster.

    Args:
        address: of the cluster's dashboard, `http://HOST:8265`.

    Raises:
        NoJobs: it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        with self._asking(), _without(_ADDRESSES):
            from ray.job_submission import JobSubmissionClient

            for handler in logging.getLogger("ray").handlers:  # it tells each upload
                handler.setLevel(logging.ERROR)
            self._client: JobSubmissionClient = JobSubmissionClient(address)

    def submit(self, config: RunConfig, *, retry: bool = False) -> tuple[Submitted, bool]:
        """Submits a job that is `prepared`, unless the one of its output still goes on.

        Args:
            config: the job.
            retry: run the rows again that have failed, and nothing else.

        Returns:
            The job, and whether it is a new one.
        """
        there = self.of_output(config.output)
        if there and there[-1].goes_on:
            return there[-1], False
        number = there[-1].number + 1 if there else 1
        words = ["retry", config.output] if retry else ["run", *given.arguments(config)]
        return self._start(f"{job_name(config.output)}-{number}", config, words), True

    def _start(self, id: str, config: RunConfig, words: list[str]) -> Submitted:
        command = ["python", "-m", "pnp_batch", *words]
        stopping = int(config.drain_timeout) + STOP_MARGIN_SECONDS
        self._submit(
            entrypoint=shlex.join(command),
            submission_id=id,
            # Nothing of this machine's environment: credentials are the cluster's own.
            runtime_env={
                "py_modules": [str(Path(__file__).parent)],
                "excludes": ["__pycache__"],
                "env_vars": {SUBMITTED: id, "RAY_JOB_STOP_WAIT_TIME_S": str(stopping)},
            },
            metadata={"pnp-batch": __version__, "output": config.output},
        )
        return self.one(id)

    def _submit(self, **job: Any) -> None:
        """Submits to a cluster that may have begun a moment ago."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with self._asking():
                    self._client.submit_job(**job)
            except NoJobs as error:
                if _NOT_READY not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return

    def all(self) -> list[Submitted]:
        """Every job of this package that the cluster remembers, the oldest first."""
        with self._asking():
            found = [_submitted(one) for one in self._client.list_jobs()]
        ours = [one for one in found if _ID.fullmatch(one.id)]
        return sorted(ours, key=lambda one: one.started or 0.0)

    def of_output(self, output: str) -> list[Submitted]:
        """The jobs of an output, in the order of their numbers."""
        return _of_output(self.all(), output)

    def one(self, name: str) -> Submitted:
        """A job by its id, or the latest one of an output by the output's URI.

        Raises:
            InvalidConfig: there is none.
        """
        every = self.all()
        named = [one for one in every if one.id == name] or _of_output(every, absolute(name))
        if not named:
            near = did_you_mean(name, [one.id for one in every]) if every else "there are none"
            raise InvalidConfig(f"no job {name!r} on {self._address}", near)
        return named[-1]

    def follow(self, id: str, say: Callable[[str], None]) -> Submitted:
        """Hands on what a job says until it has ended; how it ended."""
        with self._asking():
            asyncio.run(self._follow(id, say))
        while (there := self.one(id)).goes_on:  # the connection was cut
            time.sleep(POLL_SECONDS)
        return there

    async def _follow(self, id: str, say: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(id):
            say(text)

    def logs(self, id: str) -> str:
        """What a job has said so far."""
        with self._asking():
            return self._client.get_job_logs(id)

    def stop(self, id: str) -> Submitted:
        """Lets a job finish what is in flight and end; a pending one ends at once.

        Returns:
            How it is once it has ended.
        """
        there = self.one(id)
        if there.state == PENDING:
            # Ray would stop it only when it has started.
            with self._asking():
                code = _KILL.format(name=_ACTOR.format(id=id), space=_NAMESPACE)
                self._client.submit_job(entrypoint=shlex.join(["python", "-c", code]))
        if there.goes_on:
            with self._asking():
                self._client.stop_job(id)
        while (there := self.one(id)).goes_on:
            time.sleep(POLL_SECONDS)
        return there

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Says what the Jobs API has against it in our words."""
        try:
            yield
        except JobError:
            raise
        except Exception as error:  # Ray raises whatever its HTTP client does
            from ray.exceptions import AuthenticationError

            if isinstance(error, AuthenticationError):
                raise NoJobs(
                    f"{self._address} wants a token",
                    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN",
                ) from error
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise NoJobs(
                f"no Ray Jobs API at {self._address}: {told[0]}",
                "give the dashboard's address, as in --address http://HOST:8265",
            ) from error


def exit_code(there: Submitted) -> int:
    """What a command returns that has waited for a job: its driver's code."""
    if there.state == SUCCEEDED:
        return EXIT_OK
    if there.state == STOPPED:
        return EXIT_INTERRUPTED
    return there.exit_code or EXIT_BROKEN


def _of_output(jobs: list[Submitted], output: str) -> list[Submitted]:
    ours = [one for one in jobs if one.id.startswith(f"{job_name(output)}-")]
    return sorted(ours, key=lambda one: one.number)


def _submitted(one: JobDetails) -> Submitted:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    # A pending job that was stopped has failed to start, as Ray has it.
    state = STOPPED if _KILLED in (one.message or "") else one.status.value
    return Submitted(
        id=one.submission_id or "",
        state=state,
        exit_code=one.driver_exit_code,
        message=(one.message or "").strip(),
        output=(one.metadata or {}).get("output", ""),
        started=seconds(one.start_time),
        ended=seconds(one.end_time),
    )


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Without some environment variables, for as long as the block lasts."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
