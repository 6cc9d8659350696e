"""Real runs as processes of their own, to be killed: start, watch, `kill -9` by role, run again.

In: a manifest, an output and flags. Out: the exit code and what was told on stderr. Every process
of a run, Ray's too, belongs to the session of its driver, which is how they are found and ended.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.world import samples
from tests.faults.places import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from random import Random

    from tests.faults.places import Place

ROOT = Path(__file__).parents[2]
DRIVER, RAYLET, CONTROL_STORE = "driver", "raylet", "gcs_server"
TRANSLATOR = r"ray::MapWorker\(MapBatches\(Translate\)\)"
# Ray's workers give way to everybody else: on a busy machine they would take minutes to start.
FAIR = {"RAY_worker_niceness": "0"}
PATIENCE = 300.0  # seconds; only a broken run needs them


def manifest(path: Path, rows: int, pictures: int = 20, resolution: int = 64) -> Path:
    """Writes a manifest over some drawn pictures, one prompt each; returns its path."""
    drawn = list(samples.many_rows(min(pictures, rows), resolution=resolution))
    turns = ({**drawn[k % len(drawn)], "row_id": f"{k:06d}"} for k in range(rows))
    samples.write(turns, path)
    return path


def recorded(output: Place, known: dict[str, set[str]] | None = None) -> set[str]:
    """The ids of the rows that an output has recorded so far.

    `known` is filled with those of each file and saves reading it again: a store with thousands of
    rows would take longer to look at than its run takes.
    """
    known = {} if known is None else known
    there = [n for n in output.names("results") if re.fullmatch(r"results/[^/.][^/]*\.parquet", n)]
    for name in there:
        with suppress(FileNotFoundError, pa.ArrowException):  # being replaced or torn
            if name not in known:
                table = pq.read_table(io.BytesIO(output.read(name)), columns=["row_id"])
                known[name] = set(table["row_id"].to_pylist())
    return set().union(*(known.get(name, ()) for name in there))


def results(output: Place, *columns: str) -> dict[str, dict[str, Any]]:
    """What the results of an output say in these columns, by row id."""
    found: dict[str, dict[str, Any]] = {}
    for name in output.names():
        if re.fullmatch(r"results/[^/.][^/]*\.parquet", name):
            table = pq.read_table(io.BytesIO(output.read(name)), columns=["row_id", *columns])
            found |= {row["row_id"]: row for row in table.to_pylist()}
    return found


@dataclass
class Job:
    """One job, which can be started any number of times.

    Attributes:
        manifest: of the job.
        output: folder or URI.
        flags: further arguments of `pnp-batch run`.
        environ: what the environment has in addition, such as a store's `environ()`.
        place: how to look into the output; needed where it is no folder.
        temporary: where its temporary folder is made; the system's place if None.
    """

    manifest: Path
    output: str
    flags: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    place: Place | None = None
    temporary: Path | None = None

    @property
    def seen(self) -> Place:
        """The output, seen without the package."""
        return self.place or Folder(self.output)

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Starts `pnp-batch run` with a Ray of its own; at the end no process or file is left."""
        command = [sys.executable, "-m", "pnp_batch", "run", str(self.manifest)]
        command += ["--output", self.output, *self.flags]
        folder = tempfile.mkdtemp(prefix="pf-", dir=self.temporary)  # short: Ray puts sockets there
        environ = {**os.environ, **FAIR, **self.environ, "TMPDIR": folder}
        # On a disk of its own, which may be full, the folder does not have what the run tells.
        beside = None if self.temporary else folder
        try:
            with tempfile.NamedTemporaryFile("w+", prefix="told-", dir=beside) as told:
                driver = subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    env=environ,
                    cwd=ROOT,
                    start_new_session=True,
                )
                running = Running(self, driver, Path(folder), Path(told.name))
                try:
                    yield running
                finally:
                    running.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self) -> tuple[int, str]:
        """Runs to the end; returns the exit code and stderr."""
        with self.started() as running:
            return running.wait(), running.told()


def of_session(leader: int) -> dict[str, list[psutil.Process]]:
    """The living processes of a session by role.

    Roles are `driver` for the session's leader, `raylet`, `gcs_server`, the titles of Ray's workers
    without their current method, such as `ray::MapWorker(MapBatches(Translate))` or `ray::IDLE`,
    and for the rest the program's name.
    """
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                role = DRIVER if process.pid == leader else _role(process)
                found.setdefault(role, []).append(process)
    return found


def _role(process: psutil.Process) -> str:
    worker = re.match(r"ray::[^.]+", " ".join(process.cmdline()))
    return worker[0].strip() if worker else process.name()


class Running:
    """One run under way; `folder` is where its temporary files are, Ray's too."""

    def __init__(self, job: Job, driver: subprocess.Popen[bytes], folder: Path, told: Path) -> None:
        self.job, self.driver, self.folder, self._told = job, driver, folder, told
        self._known: dict[str, set[str]] = {}

    def told(self) -> str:
        """What it said on stderr so far."""
        return self._told.read_text()

    def last_words(self, seconds: float = 10.0) -> str:
        """What a run that ended early said; whoever speaks for a killed one may take a moment."""
        deadline = time.monotonic() + seconds
        while "error: " not in self.told():
            assert time.monotonic() < deadline, f"it ended without a word: {self.told()}"
            time.sleep(0.05)
        return self.told()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Waits for the driver's end; returns its exit code, negative for a signal."""
        return self.driver.wait(timeout=seconds)

    def recorded(self) -> int:
        """How many rows are recorded."""
        return len(recorded(self.job.seen, self._known))

    def wait_for_rows(self, count: int, seconds: float = PATIENCE) -> int:
        """Waits until so many rows are recorded, or the run has ended; returns how many there are.

        Raises:
            TimeoutError: neither happened.
        """
        deadline = time.monotonic() + seconds
        while (there := self.recorded()) < count and self.driver.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{there} of {count} rows after {seconds} s: {self.told()}")
            time.sleep(0.1)
        return there

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The living processes of the run by role."""
        return of_session(self.driver.pid)

    def kill(self, role: str, dice: Random | None = None) -> bool:
        """`kill -9` of one process whose role matches a pattern; False when there is none now.

        Args:
            role: a regular expression for the whole role.
            dice: chooses among several; without it the first is taken.
        """
        living = self.processes()
        meant = [p for name in sorted(living) if re.fullmatch(role, name) for p in living[name]]
        if not meant:
            return False
        with suppress(psutil.NoSuchProcess):
            (dice.choice(meant) if dice else meant[0]).kill()
        return True

    def end(self) -> None:
        """Kills what is left of the run, and waits until it is gone."""
        with suppress(ProcessLookupError):
            self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        deadline = time.monotonic() + PATIENCE
        while left := [process for some in self.processes().values() for process in some]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"these outlive their run: {left}")
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)


@dataclass(frozen=True)
class Kills:
    """What is killed in turn until the job is left alone.

    Attributes:
        roles: of what is killed, one after another, each a regular expression.
        rows: a kill comes when between 1 and so many rows more than before are recorded,
        pause: and up to so many seconds later.
    """

    roles: tuple[str, ...] = (DRIVER, DRIVER)
    rows: int = 4
    pause: float = 0.5


def run_until_done(job: Job, kills: Kills, dice: Random, runs: int = 20) -> list[int]:
    """Starts a job again and again, killing as told, until it ends with exit code 0.

    Returns:
        The exit code of every run, the last one 0.

    Raises:
        AssertionError: no run of the allowed number ended well, or one did before every kill, or
            one ended without a word.
    """
    codes: list[int] = []
    coming, told = list(kills.roles), ""
    while not codes or codes[-1] != 0:
        assert len(codes) < runs, f"exit codes {codes}: {told}"
        with job.started() as running:
            while coming and running.driver.poll() is None:
                _kill_some_time(running, coming, kills, dice)
            codes.append(running.wait())
            told = running.told() if codes[-1] == 0 else running.last_words()
    assert not coming, f"the job ended before {coming} could be killed: {codes}"
    return codes


def _kill_some_time(running: Running, coming: list[str], kills: Kills, dice: Random) -> None:
    """Kills the next role once more rows are recorded, and takes it from the list."""
    before = running.recorded()
    running.wait_for_rows(before + dice.randint(1, kills.rows))
    time.sleep(dice.uniform(0, kills.pause))
    lives = running.driver.poll() is None
    if lives and running.kill(coming[0], dice) and coming.pop(0) == DRIVER:
        running.wait()
