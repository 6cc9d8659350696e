"""P1: processes of a run killed without warning; every row ends exactly once.

`copy` makes of each picture that picture, so that bytes are judged without a second run.
"""

from __future__ import annotations

import io
import subprocess
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from PIL import Image, ImageChops

from tests.faults import jobs, servers
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Prefix
from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.places import Place

CONTROL, LOADER, WRITER = "ray::Control", r"ray::MapBatches\(load\)", "ray::Write"
WORKERS = (LOADER, jobs.TRANSLATOR, CONTROL, WRITER)
NODE = (jobs.RAYLET, jobs.CONTROL_STORE)
FLAGS = ("--method", "copy", "--workers", "1", "--batch-size", "2")
ROWS, LONG_ROWS, ROUNDS = 400, 10_000, 6
# Ray gives a lost control store a minute to come back.
HASTE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
# The run ended well, broke in its own words, or was killed.
CODES = (0, 1, -9)


def experiment(folder: Path, long: bool) -> Outcome:
    """One run that loses a worker, Control and its driver; or many, also with an S3 store."""
    if not long:
        manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
        job = jobs.Job(manifest, str(folder / "output"), FLAGS)
        kills = jobs.Kills((jobs.TRANSLATOR, CONTROL, jobs.DRIVER), pause=0)
        return killed(job, kills, Random(1))
    manifest = jobs.manifest(folder / "manifest.parquet", LONG_ROWS)
    runs, faults, rows, findings = 0, 0, 0, []
    with ExitStack() as stack:
        store = stack.enter_context(servers.seaweedfs()).store
        for number in range(ROUNDS):
            at = f"output-{number}"
            job = jobs.Job(manifest, str(folder / at), FLAGS, HASTE)
            first, later = WORKERS[number % len(WORKERS)], WORKERS[1:]
            if number % 3 == 2:
                environ, place = {**HASTE, **store.environ()}, Prefix(store, at)
                job = jobs.Job(manifest, store.uri(at), FLAGS, environ, place)
                # A store is slower than what copies: once rows are recorded, all are translated.
                first, later = WRITER, (CONTROL, WRITER)
            dice = Random(number)
            # What loads is done before the others: only the first of a run's kills can meet it.
            roles = (first, dice.choice(later), jobs.DRIVER)
            roles += (NODE[number % len(NODE)], dice.choice(later))
            kills = jobs.Kills(roles, rows=50, pause=0.3)
            outcome = killed(job, kills, dice)
            runs, faults, rows = runs + outcome.runs, faults + outcome.faults, rows + outcome.rows
            findings += [f"round {number}: {finding}" for finding in outcome.findings]
    return Outcome(runs, faults, rows, tuple(findings))


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def killed(job: jobs.Job, kills: jobs.Kills, dice: Random) -> Outcome:
    """Kills what is to be killed until the job is done, and judges what it has made."""
    codes, findings = disturbed(job, kills, dice)
    findings += judge(job.seen, Expectation(row_ids(job.manifest), may_fail=()))
    if not findings:
        findings += of_copies(job.manifest, job.seen)
    rows = pq.read_metadata(job.manifest).num_rows
    return Outcome(len(codes), len(kills.roles), rows, tuple(findings))


def disturbed(job: jobs.Job, kills: jobs.Kills, dice: Random) -> tuple[list[int], list[str]]:
    """The exit codes of a job's runs under kills, and what was wrong with how they ended."""
    try:
        codes = jobs.run_until_done(job, kills, dice)
    except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        return [], [f"with {kills.roles} killed it never ended well: {error}"]
    wrong = [code for code in codes if code not in CODES]
    return codes, [f"a run ended with {code}" for code in wrong]


def of_copies(manifest: Path, output: Place) -> Iterator[str]:
    """What `copy` makes of a picture of the model's own size is that picture."""
    names = {name.rsplit("/", 1)[-1]: name for name in output.names()}
    for row in pq.read_table(manifest).to_pylist():
        for number in range(len(row["prompt"])):
            made = output.read(names[f"{row['row_id']}-{number}.png"])
            with (
                Image.open(io.BytesIO(row["image"]["bytes"])) as wanted,
                Image.open(io.BytesIO(made)) as got,
            ):
                same = ImageChops.difference(wanted.convert("RGB"), got).getbbox() is None
            if not same:
                yield f"row {row['row_id']}-{number} has another picture"
