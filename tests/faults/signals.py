"""P6: a run that is asked to stop finishes what is in flight, and the same command does the rest.

A method that is ill notes every batch it begins, so that is known which rows were in flight.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.world import draw, random_spec
from tests import tiny
from tests.faults import ill, jobs
from tests.faults.oracle import Expectation, judge
from tests.faults.promise import Outcome
from tests.pictures import saved

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime
    from pathlib import Path

SIDE, ROWS, LONG_ROWS, ROUNDS = 32, 24, 200, 6
INTERRUPTED, FIRST_SCALE = 130, 10
STUCK = 600.0  # seconds: longer than anything is waited for
PROMISED_SECONDS = 30.0


def experiment(folder: Path, long: bool) -> Outcome:
    """Stopped by one signal, then resumed and stopped at once by two; and many times over."""
    trial = Trial(folder, LONG_ROWS if long else ROWS)
    trial.stop(signal.SIGINT, pause=0.3)
    trial.stop_at_once(signal.SIGTERM, stuck=long)
    if long:
        trial.stop_overdue()
        dice = Random(6)
        for _ in range(ROUNDS):
            trial.stop(dice.choice((signal.SIGINT, signal.SIGTERM)), pause=dice.uniform(0, 0.5))
        trial.finish()
    return Outcome(trial.runs, trial.signals, len(trial.names), tuple(trial.findings))


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


class Trial:
    """One output, whose runs are stopped and resumed."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.runs, self.signals = folder, 0, 0
        self.findings: list[str] = []
        self.names = [f"row-{number}" for number in range(rows)]
        table = [_row(name, number) for number, name in enumerate(self.names)]
        self._scale = {row["row_id"]: row["guidance_scale"] for row in table}
        pq.write_table(pa.Table.from_pylist(table), folder / "manifest.parquet")
        model = tiny.save_model(folder / "model", "sd1")
        self._flags = ("--model", str(model), "--method", "ill", "--steps", "2")
        self._flags += ("--workers", "1", "--batch-size", "2", "--cache", str(folder / "cache"))

    def stop(self, number: signal.Signals, pause: float) -> None:
        """One signal: everything that was begun is recorded, what was recorded stays."""
        job, known, before = self._job(pause), self._recorded(), len(self._begun())
        with job.started() as running:
            running.wait_for_rows(len(known) + 1)
            self._signal(running, number)
            self._ended(running, "interrupted, what was in flight is recorded")
        now = self._recorded()
        mine = Counter(scale for batch in self._begun()[before:] for scale in batch)
        self._find("lost", set(mine) - {self._scale[name] for name in now})
        self._find("done twice", [scale for scale, count in mine.items() if count > 1])
        if not set(now) - set(known) or len(now) == len(self.names):
            self.findings.append(f"the signal did not come in the middle: {len(now)} rows")
        self._unchanged(known, before)
        self.findings += judge(job.seen, Expectation(list(now), may_fail=()))

    def stop_at_once(self, number: signal.Signals, *, stuck: bool) -> None:
        """Two signals while a model is loaded, or a row is stuck; and so long may the drain be."""
        job, known = self._job(STUCK, "--drain-timeout", str(STUCK)), self._recorded()
        before = len(self._begun())
        with job.started() as running:
            if stuck:
                self._wait_for(running, lambda: len(self._begun()) > before)
            else:
                self._wait_for(running, lambda: "loading the model" in running.told())
            self._signal(running, number)
            time.sleep(1)
            self._signal(running, number)
            self._ended(running, "stopped at once")
        self._unchanged(known, before)

    def stop_overdue(self) -> None:
        """One signal, while a row takes longer than the drain: ends as soon as was promised."""
        job, known, before = self._job(STUCK), self._recorded(), len(self._begun())
        with job.started() as running:
            self._wait_for(running, lambda: len(self._begun()) > before)
            begun = time.monotonic()
            self._signal(running, signal.SIGINT)
            self._ended(running, "stopped at once")
            took = time.monotonic() - begun
        if took > PROMISED_SECONDS:
            self.findings.append(f"it ended {took:.1f} s after the signal")
        self._unchanged(known, before)

    def finish(self) -> None:
        """Runs to the end; every row is there, and those recorded before are as they were."""
        job, known, before = self._job(0), self._recorded(), len(self._begun())
        code, told = job.run()
        self.runs += 1
        self.findings += [f"the last run ended with {code}: {told}"] if code else []
        self.findings += judge(job.seen, Expectation(self.names, may_fail=()))
        self._unchanged(known, before)

    def _job(self, pause: float, *flags: str) -> jobs.Job:
        environ = ill.installed(self.folder / "plug-in", pause)
        output = str(self.folder / "output")
        return jobs.Job(self.folder / "manifest.parquet", output, (*self._flags, *flags), environ)

    def _begun(self) -> list[list[float]]:
        return ill.begun(self.folder / "plug-in")

    def _wait_for(self, running: jobs.Running, sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + jobs.PATIENCE
        while not sign() and running.driver.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run does not get there: {running.told()}")
            time.sleep(0.1)

    def _signal(self, running: jobs.Running, number: signal.Signals) -> None:
        running.driver.send_signal(number)
        self.signals += 1

    def _ended(self, running: jobs.Running, error: str) -> None:
        """Ends with 130, the error and the command that resumes as its last lines."""
        self.runs += 1
        try:
            code = running.wait()
        except subprocess.TimeoutExpired:
            self.findings.append(f"it does not end: {running.told()}")
            return
        told = running.told().strip().splitlines()[-2:]
        again = f"hint: to go on, run: pnp-batch run {self.folder / 'manifest.parquet'}"
        if code != INTERRUPTED or told[0] != f"error: {error}" or not told[1].startswith(again):
            self.findings.append(f"it ended with {code} and {told}")

    def _recorded(self) -> dict[str, datetime]:
        """When each row was recorded."""
        there = jobs.results(self._job(0).seen, "recorded_at")
        return {name: row["recorded_at"] for name, row in there.items()}

    def _unchanged(self, known: dict[str, datetime], before: int) -> None:
        """What was recorded stays so and is not begun again; `before` batches were known then."""
        now = self._recorded()
        left = self._left_to_do()
        if left != len(self.names) - len(now):
            self.findings.append(f"with {len(now)} rows recorded there are {left} to do")
        self._find("recorded anew", [self._scale[n] for n in known if now.get(n) != known[n]])
        mine = {scale for batch in self._begun()[before:] for scale in batch}
        self._find("done again", {self._scale[name] for name in known} & mine)

    def _left_to_do(self) -> int:
        """How many rows the same command would do, as `plan` says it."""
        job = self._job(0)
        command = [sys.executable, "-m", "pnp_batch", "plan", str(job.manifest), "--json"]
        command += ["--output", job.output, *job.flags]
        environ = {**os.environ, **job.environ}
        done = subprocess.run(command, env=environ, cwd=jobs.ROOT, capture_output=True, check=True)
        return int(json.loads(done.stdout)["todo"])

    def _find(self, what: str, scales: Collection[float]) -> None:
        self.findings += [f"rows of the scales {sorted(scales)} were {what}"] if scales else []


def _row(name: str, number: int) -> dict[str, object]:
    """A row that is known by its guidance scale."""
    picture = draw(random_spec(Random(number)), resolution=64).image.resize((SIDE, SIDE))
    image = {"bytes": saved(picture), "path": None}
    scale = float(FIRST_SCALE + number)
    return {"row_id": name, "image": image, "prompt": "a cat", "guidance_scale": scale}
