"""A whole run beside the bare engine: the same rows through `pnp-batch run`, and through a loop.

What the run takes beyond the loop is what the pipeline costs: reading and decoding sources,
storage, Ray. Its start is told apart: only the time from its first recorded rows on counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pnp_batch import config as configuration
from pnp_batch import given, record, results
from pnp_batch.bench import work
from pnp_batch.config import RunConfig
from pnp_batch.errors import JobError
from pnp_batch.storage import Storage

POLL_SECONDS = 0.5
WORKER = "ray::MapWorker"


class BenchFailed(JobError):
    """The run that was to be measured did not end well."""


@dataclass(frozen=True)
class WholeBench:
    """What a whole run does.

    Attributes:
        rows: of the run, all of them translated.
        workers: actors that translated them.
        seconds: from the first recorded rows to the last ones.
        images_per_second: of the rows after the first ones, over these seconds.
        busy: share of these seconds that the workers spent in the engine.
        unet_busy: share of these seconds that they spent in the UNet.
        start_seconds: until the first rows: Python, Ray, loading the model, one block.
        driver_mib, worker_mib: largest resident memory of the driver, and of a worker; None where
            the system does not tell.
    """

    rows: int
    workers: int
    seconds: float
    images_per_second: float
    busy: float
    unet_busy: float
    start_seconds: float
    driver_mib: float | None
    worker_mib: float | None


def bench_whole(config: RunConfig, *, rows: int, prompts: int, workers: int) -> WholeBench:
    """Runs `pnp-batch run` over drawn pictures in a process of its own and watches it.

    Raises:
        BenchFailed: the run did not end well.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.manifest(folder / "manifest.parquet", max(1, rows // prompts), prompts)
        job = configuration.with_values(
            config,
            manifest=str(folder / "manifest.parquet"),
            output=str(folder / "output"),
            cache=None,
            workers=workers,
        )
        command = [sys.executable, "-m", "pnp_batch", *given.command(job)]
        begun = time.time()
        with (folder / "told").open("w") as told:
            driver = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
            )
            memory = _watched(driver)
        if driver.returncode:
            said = (folder / "told").read_text().strip().splitlines()[-2:]
            raise BenchFailed(f"the run ended with {driver.returncode}: {' '.join(said)}")
        return _measured(Storage(job.output), workers, begun, memory)


def _measured(
    output: Storage, workers: int, begun: float, memory: Mapping[str, float]
) -> WholeBench:
    table = results.read(output, ["seconds", "recorded_at"])
    recorded = table["recorded_at"].cast(pa.int64()).to_numpy() / 1e6
    later = recorded > recorded.min()
    if not later.any():
        raise BenchFailed("all rows were recorded at once", "measure more rows")
    seconds = float(recorded.max() - recorded.min())
    # Rows that need no engine have spent no time there.
    each = table["seconds"].fill_null(0.0).to_numpy()
    busy = min(1.0, each[later].sum() / (workers * seconds))  # the first block overlaps the second
    there = record.read(output)
    in_unet = there.counts.get("unet_seconds", 0.0) if there else 0.0
    return WholeBench(
        rows=len(table),
        workers=workers,
        seconds=seconds,
        images_per_second=float(later.sum()) / seconds,
        busy=float(busy),
        unet_busy=float(busy * in_unet / each.sum()) if in_unet else 0.0,
        start_seconds=float(recorded.min()) - begun,
        driver_mib=memory.get("driver"),
        worker_mib=memory.get("worker"),
    )


def _watched(driver: subprocess.Popen[bytes]) -> dict[str, float]:
    """Waits for a run's end; the largest resident memory of its driver and of a worker, in MiB."""
    largest: dict[str, float] = {}
    while driver.poll() is None:
        for role, used in _memory(driver.pid):
            largest[role] = max(used, largest.get(role, 0.0))
        time.sleep(POLL_SECONDS)
    return largest


def _memory(driver: int) -> Iterator[tuple[str, float]]:
    """What the processes of a run hold now, as Linux tells it; nothing on other systems."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != driver:
                continue
            command = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
            role = "driver" if int(folder.name) == driver else "worker"
            if role == "driver" or command.startswith(WORKER):
                pages = int((folder / "statm").read_text().split()[1])
                yield role, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
