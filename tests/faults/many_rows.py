"""P12: what a row costs the driver of a run, in memory.

In: manifests of few pictures and many rows. The short form plans them, which reads, checks and
arranges every row as a run does; the long one copies them, killed and resumed on the way. Of a
million rows it does the first ones, and the last ones where all others are recorded: between these
the driver knows less.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch import methods, results
from pnp_batch.config import RunConfig
from pnp_batch.errors import EXIT_INTERRUPTED
from pnp_batch.listing import Listing
from pnp_batch.manifest import read
from pnp_batch.storage import Storage
from pnp_batch.world import draw, random_spec
from tests.faults import jobs
from tests.faults.memory import resident, sampled
from tests.faults.oracle import Expectation, judge
from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

PICTURES, SIDE = 20, 32
SHORT, LONG = (50_000, 250_000), (100_000, 1_000_000)
# What was promised for 100,000 and 1,000,000 rows; and what that is a row.
PROMISED_MIB = 100.0
BYTES_A_ROW = PROMISED_MIB * 2**20 / (LONG[1] - LONG[0])
FLAGS = ("--method", "copy", "--resolution", str(SIDE), "--workers", "2")
ROWS_A_FILE = 256
# Runs a command and tells its peak: the kernel's own count is at first that of the process before.
PEAK = """
import re, resource, sys
from pathlib import Path
from pnp_batch import cli
try:
    cli.main(sys.argv[1:])
finally:
    status = Path("/proc/self/status")
    if status.exists():
        kib = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    else:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    sys.stderr.write(f"{kib / 2**10}\\n")
"""
# Of a million rows so many are done before the kill, after it, and at the end of all.
PART, LAST = 20_000, 10_000


def experiment(folder: Path, long: bool) -> Outcome:
    """Plans of 50,000 and 250,000 rows; or `copy` of 100,000 and of parts of 1,000,000."""
    if long:
        return copied(folder)
    peaks = [planned(manifest(folder / f"{rows}", rows)) for rows in SHORT]
    a_row = (peaks[1] - peaks[0]) * 2**20 / (SHORT[1] - SHORT[0])
    findings = () if a_row < BYTES_A_ROW else (f"a row costs the driver {a_row:.0f} bytes",)
    return Outcome(len(SHORT), 0, sum(SHORT), findings)


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def copied(folder: Path) -> Outcome:
    """The driver's largest memory: over all of few rows, and the begin and the end of many."""
    few, many = (manifest(folder / f"{rows}", rows) for rows in LONG)
    findings: list[str] = []
    peaks = [
        _whole(jobs.Job(few, str(folder / "few"), FLAGS), findings),
        _begun(jobs.Job(many, str(folder / "begun"), FLAGS), findings),
        _ended(jobs.Job(many, str(folder / "ended"), FLAGS), findings),
    ]
    if max(peaks[1:]) - peaks[0] > PROMISED_MIB:
        told = ", ".join(f"{peak:.0f}" for peak in peaks)
        findings.append(f"the driver takes {told} MiB for few rows, many at first, many at last")
    return Outcome(5, 2, LONG[0] + 2 * PART + LAST, tuple(findings))


def _whole(job: jobs.Job, findings: list[str]) -> float:
    """All rows, with a kill in the middle."""
    with job.started() as running, watched(running) as memory:
        if not _killed_after(running, LONG[0] // 3):
            findings.append(f"the run was not killed: {running.told()}")
    with job.started() as running, watched(running, memory):
        code = running.wait(LONG[0])  # a row a second is too slow for anybody
    findings += [f"the run of {LONG[0]} rows ended with {code}"] if code else []
    findings += judge(job.seen, Expectation(_names(job), may_fail=()))
    return max(memory)


def _begun(job: jobs.Job, findings: list[str]) -> float:
    """The first rows, with a kill and then a signal."""
    with job.started() as running, watched(running) as memory:
        if not _killed_after(running, PART):
            findings.append(f"the run was not killed: {running.told()}")
    with job.started() as running, watched(running, memory):
        _wait_for_rows(running, 2 * PART)
        running.driver.send_signal(signal.SIGINT)
        code = running.wait()
        told = running.told()[-500:]
    if code != EXIT_INTERRUPTED:
        findings.append(f"the interrupted run ended with {code}: {told}")
    found = judge(job.seen, Expectation(list(jobs.recorded(job.seen)), may_fail=()))
    # What the kill left in flight is done anew when its turn comes, which is after the signal.
    findings += [finding for finding in found if "named by no row" not in finding]
    return max(memory)


def _ended(job: jobs.Job, findings: list[str]) -> float:
    """The last rows, after the others were recorded in as many files as a run makes of them."""
    names = _names(job)
    asked = RunConfig(str(job.manifest), job.output, method="copy")
    listing = Listing(read(asked.manifest), asked, methods.KNOWN)
    output, fixed = Storage(job.output), {"status": "ok", "recorded_at": datetime.now(UTC)}
    for begun in range(0, len(names) - LAST, ROWS_A_FILE):
        rows = np.arange(begun, min(begun + ROWS_A_FILE, len(names) - LAST))
        told = listing.file.take(rows, ["row_id", "row_hash", "image", "prompt"]).to_pylist()
        made = [{**row, **fixed, "output": f"images/{row['row_id']}.png"} for row in told]
        results.write(output, pa.Table.from_pylist(made, results.SCHEMA))
    with job.started() as running, watched(running) as memory:
        code = running.wait(LAST)
    findings += [f"the run of the last rows ended with {code}"] if code else []
    recorded = jobs.results(job.seen, "status")
    if sorted(recorded) != sorted(names) or len(results.parts(output)) > len(names) // 50_000:
        findings.append("the many rows are not each recorded once, in few files")
    return max(memory)


def _names(job: jobs.Job) -> list[str]:
    names: list[str] = pq.read_table(job.manifest, columns=["row_id"])["row_id"].to_pylist()
    return names


def manifest(folder: Path, rows: int) -> Path:
    """Writes a manifest of paths to a few pictures."""
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        picture = draw(random_spec(Random(number)), resolution=64).image.resize((SIDE, SIDE))
        picture.save(folder / f"{number}.png")
    columns = {
        "row_id": [f"{number:07d}" for number in range(rows)],
        "image": [f"{number % PICTURES}.png" for number in range(rows)],
        "prompt": [f"a drawing of a cat, number {number}" for number in range(rows)],
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def planned(path: Path) -> float:
    """The largest memory of `pnp-batch plan`, in MiB."""
    arguments = ["plan", str(path), "--output", str(path.parent / "output"), "--method", "copy"]
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=jobs.ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"the plan of {path} ended with {done.returncode}: {done.stderr}")
    return float(done.stderr.split()[-1])


def watched(
    running: jobs.Running, seen: list[float] | None = None
) -> AbstractContextManager[list[float]]:
    """MiB of the driver alone while a block runs."""
    driver = psutil.Process(running.driver.pid)
    return sampled(lambda: resident([driver]), seen)


def _killed_after(running: jobs.Running, rows: int) -> bool:
    """Kills the driver once about so many rows are recorded; False if it had ended by then."""
    return _wait_for_rows(running, rows) and running.kill(jobs.DRIVER)


def _wait_for_rows(running: jobs.Running, rows: int) -> bool:
    """Waits for as many files as hold so many rows; False if the run has ended before."""
    folder = Path(running.job.output) / "results"
    while running.driver.poll() is None:
        if len(list(folder.glob("part-*.parquet"))) >= rows // ROWS_A_FILE:
            return True
        time.sleep(0.5)
    return False
