"""P12: what a row costs the driver of a run, in memory.

In: manifests of few pictures and many rows. The short form plans them, which reads, checks and
arranges every row as a run does; the long one copies them, killed and resumed on the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.world import draw, random_spec
from tests.faults import jobs
from tests.faults.oracle import Expectation, judge
from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURES, SIDE = 20, 32
SHORT, LONG = (20_000, 120_000), (100_000, 1_000_000)
# What was promised for 100,000 and 1,000,000 rows.
PROMISED_MIB = 100.0
# The table of all rows is in the driver, 600 to 900 bytes a row: more than was promised. The short
# form holds that it does not grow; a picture has 3,072 bytes of pixels, which must never get there.
BYTES_A_ROW = 1_500.0
FLAGS = ("--method", "copy", "--resolution", str(SIDE), "--workers", "2")
ROWS_A_FILE = 256


def experiment(folder: Path, long: bool) -> Outcome:
    """Plans of 20,000 and 120,000 rows; or `copy` of 100,000 and 1,000,000."""
    if long:
        return copied(folder, LONG)
    peaks = [planned(manifest(folder / f"{rows}", rows)) for rows in SHORT]
    a_row = (peaks[1] - peaks[0]) * 2**20 / (SHORT[1] - SHORT[0])
    findings = () if a_row < BYTES_A_ROW else (f"a row costs the driver {a_row:.0f} bytes",)
    return Outcome(len(SHORT), 0, sum(SHORT), findings)


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def copied(folder: Path, sizes: tuple[int, int]) -> Outcome:
    """Runs that are killed once and resumed; the driver's largest memory over both."""
    findings, peaks = [], []
    for rows in sizes:
        path = manifest(folder / f"{rows}", rows)
        job = jobs.Job(path, str(folder / f"{rows}" / "output"), FLAGS)
        with job.started() as running, watched(running) as memory:
            if not _killed_after(running, rows // ROWS_A_FILE // 3):
                findings.append(f"the run of {rows} rows was not killed: {running.told()}")
        with job.started() as running, watched(running, memory):
            code = running.wait(rows)  # a row a second is too slow for anybody
        findings += [f"the run of {rows} rows ended with {code}"] if code else []
        names = pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()
        findings += judge(job.seen, Expectation(names, may_fail=()))
        peaks.append(max(memory))
    if peaks[1] - peaks[0] > PROMISED_MIB:
        pairs = zip(peaks, sizes, strict=True)
        told = " and ".join(f"{peak:.0f} MiB for {rows} rows" for peak, rows in pairs)
        findings.append(f"the driver's memory is {told}")
    return Outcome(2 * len(sizes), len(sizes), sum(sizes), tuple(findings))


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
    command = [sys.executable, "-m", "pnp_batch", "plan", str(path)]
    command += ["--output", str(path.parent / "output"), "--method", "copy"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=jobs.ROOT) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the plan of {path} ended with {process.returncode}")
    return used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def watched(running: jobs.Running, seen: list[float] | None = None) -> Iterator[list[float]]:
    """MiB of the driver alone, a few times a second; what it shares is Ray's object store."""
    seen, over = [0.0] if seen is None else seen, threading.Event()

    def watch() -> None:
        process = psutil.Process(running.driver.pid)
        while not over.wait(0.2) and process.is_running():
            with suppress(psutil.NoSuchProcess):
                used = process.memory_info()
                seen.append((used.rss - getattr(used, "shared", 0)) / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _killed_after(running: jobs.Running, files: int) -> bool:
    """Kills the driver once so many results files are there; False if it had ended by then."""
    results = Path(running.job.output) / "results"
    while running.driver.poll() is None:
        if len(list(results.glob("part-*.parquet"))) >= max(1, files):
            return running.kill(jobs.DRIVER)
        time.sleep(0.5)
    return False
