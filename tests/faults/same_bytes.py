"""P2: the bytes of images and latents do not depend on faults; P1 with a diffusion model.

What a fault leaves to do is a subset of each batch, in another order; the bytes must not show it.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from pnp_batch.models import DEMO
from tests import tiny
from tests.faults import alone, jobs
from tests.faults.kills import CONTROL, disturbed
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 3


def experiment(folder: Path, long: bool) -> Outcome:
    """A tiny model whose one worker dies; or the embedded one with two, drivers too, many times."""
    if long:
        manifest = jobs.manifest(folder / "manifest.parquet", 200, 40)
        settings = alone.Settings(DEMO, batch_size=4, workers=2)
        return compared(folder, manifest, settings, ROUNDS)
    manifest = jobs.manifest(folder / "manifest.parquet", 24, 6)
    model = tiny.save_model(folder / "model", "sd1")
    return compared(folder, manifest, alone.Settings(str(model), batch_size=4), rounds=1)


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def compared(folder: Path, manifest: Path, settings: alone.Settings, rounds: int) -> Outcome:
    """Translates a manifest here, then in jobs under kills, and compares every byte."""
    reference = alone.translated(manifest, settings, folder / "alone")
    names, runs, faults, findings = row_ids(manifest), 0, 0, []
    for number in range(rounds):
        dice, output = Random(number), str(folder / f"killed-{number}")
        # P1 and the suite of the pipeline resume killed drivers: the short form loses a worker.
        # What loads or writes is done in no time beside the model: few kills would meet it.
        more = (jobs.DRIVER, CONTROL, jobs.DRIVER)
        kills = jobs.Kills((jobs.TRANSLATOR, *(more if rounds > 1 else ())), rows=2, pause=0.3)
        job = jobs.Job(manifest, output, settings.flags)
        codes, wrong = disturbed(job, kills, dice)
        findings += wrong or judge(job.seen, Expectation(names, may_fail=()), reference)
        runs, faults = runs + len(codes), faults + len(kills.roles)
    return Outcome(runs, faults, len(names) * rounds, tuple(findings))
