"""P2: the bytes of images and latents do not depend on faults; P1 with a diffusion model.

What a fault leaves to do is a subset of each batch, in another order; the bytes must not show it.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests import tiny
from tests.faults import jobs
from tests.faults.kills import CONTROL, LOADER, WRITER, disturbed
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = 6
LONG_ROUNDS = 6


def experiment(folder: Path, long: bool) -> Outcome:
    """A tiny model with one worker; or the embedded one with two, many times."""
    if long:
        return compared(folder, rows=200, rounds=LONG_ROUNDS, flags=("--workers", "2"))
    model = tiny.save_model(folder / "model", "sd1")
    flags = ("--model", str(model), "--workers", "1", "--batch-size", "4")
    return compared(folder, rows=48, rounds=1, flags=flags)


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def compared(folder: Path, rows: int, rounds: int, flags: tuple[str, ...]) -> Outcome:
    """Runs a job calmly once, then with kills, and compares every byte."""
    manifest = jobs.manifest(folder / "manifest.parquet", rows, PICTURES if rounds == 1 else 40)
    flags = (*flags, "--steps", "2")
    calm = jobs.Job(manifest, str(folder / "calm"), flags)
    code, told = calm.run()
    runs, faults, findings = 1, 0, [f"the calm run ended with {code}: {told}"] if code else []
    expected = Expectation(row_ids(manifest), may_fail=())
    for number in range(rounds):
        dice, job = Random(number), jobs.Job(manifest, str(folder / f"killed-{number}"), flags)
        # P1 and the suite of the pipeline resume killed drivers: the short form loses a worker.
        more = (jobs.DRIVER, dice.choice((CONTROL, LOADER, WRITER)), jobs.DRIVER)
        kills = jobs.Kills((jobs.TRANSLATOR, *(more if rounds > 1 else ())), rows=2, pause=0.3)
        codes, wrong = disturbed(job, kills, dice)
        findings += wrong or judge(job.seen, expected, calm.seen)
        runs, faults = runs + len(codes), faults + len(kills.roles)
    return Outcome(runs, faults, rows * (1 + rounds), tuple(findings))
