"""Measures what a row costs beside its picture: manifests of many rows over few small pictures.

Each manifest is planned, copied for a while, killed (-9), looked at and copied again. Prints a
Markdown table of seconds, of the driver's memory, and of what lies in the output, from which
docs/scale.md counts what larger manifests need. No GPU, no model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import click
import psutil  # type: ignore[import-untyped]  # it brings no types
import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.world import draw, random_spec

PICTURES, SIDE = 20, 64
ROWS_A_GROUP = 100_000
LOOKS = 0.25  # seconds between two looks at a process
COLUMNS = (
    *(
        "rows",
        "plan, CPU s",
        "plan, MiB",
        "first row after, s",
        "rows/s",
        "driver, MiB",
        "in the end",
    ),
    *("rows done", "parts at most", "status, CPU s", "status, MiB", "resume, s", "rows/s then"),
    *("driver, MiB then", "parts at last", "result bytes a row", "image bytes a row"),
)


@dataclass
class Watched:
    """A process under watch.

    Attributes:
        cpu: seconds of a processor it took, whatever else the machine was doing.
        mib: what it alone had resident, at each look.
        done: rows recorded, and seconds since its start, whenever that number rose.
        parts: the largest number of files of results.
    """

    cpu: float = 0.0
    mib: list[float] = field(default_factory=list)
    done: list[tuple[float, int]] = field(default_factory=list)
    parts: int = 0

    @property
    def rate(self) -> float:
        """Rows a second after the first rows."""
        if len(self.done) < 2:
            return 0.0
        (begun, before), (ended, after) = self.done[0], self.done[-1]
        return (after - before) / (ended - begun)


@dataclass(frozen=True)
class Measured:
    """What a manifest of so many rows costs; the output as its last run left it."""

    rows: int
    plan: Watched
    first: Watched
    status: Watched
    second: Watched
    done: int
    parts: int
    result_bytes: float
    image_bytes: float

    @property
    def cells(self) -> Iterator[str]:
        """Of a line of the table."""
        yield f"{self.rows:,}"
        yield f"{self.plan.cpu:.1f}"
        yield f"{max(self.plan.mib):.0f}"
        yield f"{self.first.done[0][0]:.0f}" if self.first.done else "-"
        yield f"{self.first.rate:.0f}"
        yield f"{max(self.first.mib):.0f}"
        yield f"{self.first.mib[-2]:.0f}"
        yield f"{self.done:,}"
        yield f"{max(self.first.parts, self.second.parts):,}"
        yield f"{self.status.cpu:.1f}"
        yield f"{max(self.status.mib):.0f}"
        yield f"{self.second.done[0][0]:.0f}" if self.second.done else "-"
        yield f"{self.second.rate:.0f}"
        yield f"{max(self.second.mib):.0f}"
        yield f"{self.parts:,}"
        yield f"{self.result_bytes:.0f}"
        yield f"{self.image_bytes:.0f}"


@click.command()
@click.option("--rows", type=int, multiple=True, default=(10_000, 100_000, 1_000_000))
@click.option("--seconds", default=60.0, show_default=True, help="Of each run, until its kill.")
@click.option("--again", default=30.0, show_default=True, help="Seconds of the resumed run.")
@click.option("--output", metavar="DIR", help="Keep everything there (default: a temporary one).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    rows: Sequence[int], seconds: float, again: float, output: str | None, as_json: bool
) -> None:
    """Measure manifests of so many rows, in part where they take longer."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for count in rows:
            folder = Path(output or name) / str(count)
            found.append(_measured(folder, count, seconds, again))
            click.echo(f"{count} rows measured", err=True)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    click.echo(f"| {' | '.join(COLUMNS)} |")
    click.echo(f"|{'---:|' * len(COLUMNS)}")
    for one in found:
        click.echo(f"| {' | '.join(one.cells)} |")


def _measured(folder: Path, rows: int, seconds: float, again: float) -> Measured:
    path = _manifest(folder, rows)
    output = folder / "output"
    asked = [str(path), "--output", str(output), "--method", "copy", "--resolution", str(SIDE)]
    plan = _command(output, "plan", *asked)
    first = _command(output, "run", *asked, "--workers", "2", limit=seconds)
    status = _command(output, "status", str(output))
    second = _command(output, "run", *asked, "--workers", "2", limit=again)
    parts = list((output / "results").glob("part-*.parquet"))
    records = [pq.read_metadata(part).num_rows for part in parts]
    images = [entry.stat().st_size for entry in output.glob("images/*/*")]
    return Measured(
        rows,
        plan,
        first,
        status,
        second,
        done=sum(records),
        parts=len(parts),
        result_bytes=sum(part.stat().st_size for part in parts) / sum(records),
        image_bytes=sum(images) / len(images),
    )


def _manifest(folder: Path, rows: int) -> Path:
    """Writes a manifest of paths to a few pictures."""
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        picture = draw(random_spec(Random(number)), resolution=SIDE).image
        picture.save(folder / f"{number}.png")
    schema = pa.schema([(name, pa.string()) for name in ("row_id", "image", "prompt")])
    path = folder / "manifest.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for begun in range(0, rows, ROWS_A_GROUP):
            numbers = range(begun, min(begun + ROWS_A_GROUP, rows))
            columns = [
                [f"{number:09d}" for number in numbers],
                [f"{number % PICTURES}.png" for number in numbers],
                [f"a drawing of a cat, number {number}" for number in numbers],
            ]
            writer.write_table(pa.table(columns, schema=schema))
    return path


def _command(output: Path, *arguments: str, limit: float | None = None) -> Watched:
    """Runs `pnp-batch`, killed after so many seconds of work, its start not counted."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder, _ended(folder, arguments) as running:
        watched, begun, since = Watched(), time.monotonic(), 0.0
        driver = psutil.Process(running.pid)
        before = _done(output)
        while running.poll() is None:
            with suppress(psutil.Error):
                used = driver.memory_info()
                watched.cpu = sum(driver.cpu_times()[:2])
                watched.mib.append((used.rss - getattr(used, "shared", 0)) / 2**20)
            watched.parts = max(watched.parts, len(list((output / "results").glob("part-*"))))
            now, done = time.monotonic() - begun, _done(output)
            if done > (watched.done[-1][1] if watched.done else before):
                watched.done.append((now, done))
                since = since or now
            if limit is not None and since and now > since + limit:
                break
            threading.Event().wait(LOOKS)
        if limit is None and running.returncode:
            raise click.ClickException(f"{arguments} ended with {running.returncode}")
        return watched


def _done(output: Path) -> int:
    """Rows done, as the run says every few seconds."""
    try:
        return int(json.loads((output / "run.json").read_text())["done"])
    except FileNotFoundError:
        return 0


@contextmanager
def _ended(folder: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own session; at the end it and all that it started are killed."""
    command = [sys.executable, "-m", "pnp_batch", *arguments]
    running = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        started: list[psutil.Process] = []
        with suppress(psutil.Error):
            started = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.wait()
        for process in started:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(started, timeout=30)


if __name__ == "__main__":
    main()
