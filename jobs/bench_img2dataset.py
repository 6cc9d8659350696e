"""Rows a second on one core: `pnp-batch run --method copy` beside img2dataset, which only resizes.

Both read the same JPEG files of 256 to 512 pixels a side, crop and resize them to a square, and
write JPEG files of quality 95 and a record of each row to a local folder. The files are mosaics of
drawn pictures, as large as photographs of that size; they lie on disk, and a server on this machine
serves them as well. img2dataset is what its own environment holds, with one process and everything
else, its 256 threads too, as it is by default; pnp-batch has one worker.

Each tool with all its processes is bound to one core, the server to the others where there are
any. Each runs with all rows and with a tenth of them: the difference in rows over the difference in
seconds is its rate, what is left of the seconds its start. Linux only.

What is not the same: img2dataset decodes and resizes with OpenCV (area, or Lanczos upwards) and
halves the colours' resolution, pnp-batch with Pillow (Lanczos) at full colour resolution, orders
and checks rows and addresses, and syncs what it records; with "files" img2dataset writes a JSON
file beside each picture, pnp-batch tables of many rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from statistics import median
from typing import TextIO

import click
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pnp_batch.bench import work
from pnp_batch.record import versions

TILES, LEAST, MOST = 32, 256, 512
IMG2DATASET, PNP_BATCH = "img2dataset", "pnp-batch copy"
HTTP, DISK = "loopback HTTP", "disk"
HOST = "127.0.0.1"
TOLD_LINES = 15


@dataclass(frozen=True)
class Asked:
    """What both tools are to do, and where the pictures are.

    Attributes:
        rows: pictures, `few` of them in the short runs.
        server: the address before a picture's name.
    """

    program: Path
    folder: Path
    server: str
    rows: int
    few: int
    size: int
    output_format: str


@dataclass(frozen=True)
class Rate:
    """What a tool does; medians.

    Attributes:
        rows_per_second: on one core, the start left out.
        start_seconds: of a whole run, whatever its rows.
        seconds, few_seconds: of whole runs with all rows and with few.
    """

    tool: str
    source: str
    rows_per_second: float
    start_seconds: float
    seconds: float
    few_seconds: float


@click.command()
@click.option(
    "--img2dataset",
    "program",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The program in its own environment.",
)
@click.option(
    "--rows", type=click.IntRange(min=20), default=2000, show_default=True, help="Pictures."
)
@click.option("--size", default=256, show_default=True, help="Side of the written pictures.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs.")
@click.option(
    "--output-format",
    type=click.Choice(["files", "webdataset", "parquet"]),
    default="files",
    show_default=True,
    help="Of img2dataset.",
)
@click.option("--json", "as_json", type=click.File("w"), metavar="FILE", help="Also write JSON.")
def main(
    program: Path, rows: int, size: int, repeats: int, output_format: str, as_json: TextIO | None
) -> None:
    """Measure rows a second of one core, of pnp-batch and of img2dataset."""
    if not hasattr(os, "sched_setaffinity"):
        raise click.UsageError("this system cannot bind a process to a core; run it on Linux")
    core, *others = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _draw(folder / "pictures", rows)
        with _served(folder / "pictures", others or [core]) as server:
            os.sched_setaffinity(0, [core])  # which all that is started from now on inherits
            few = rows // 10
            asked = Asked(program.absolute(), folder, server, rows, few, size, output_format)
            rates = _measure(asked, repeats)
    click.echo("\n".join(_markdown(rates, asked, repeats)))
    if as_json:
        told = {"rows": rows, "few": asked.few, "size": size, "output_format": output_format}
        told |= {"repeats": repeats, "cores": len(others) + 1, "versions": versions()}
        json.dump({**told, "rates": [asdict(rate) for rate in rates]}, as_json)


def _draw(folder: Path, count: int) -> None:
    """Writes JPEG files `000000.jpg`, ..., each another mosaic of another size."""
    folder.mkdir()
    dice, tiles = Random("bench/img2dataset"), work.pictures(TILES, seed=0)
    side = tiles[0].width
    corners = [(x, y) for x in range(0, MOST, side) for y in range(0, MOST, side)]
    for number in range(count):
        mosaic = Image.new("RGB", (dice.randint(LEAST, MOST), dice.randint(LEAST, MOST)))
        for corner in corners:
            mosaic.paste(dice.choice(tiles), corner)
        mosaic.save(folder / f"{number:06d}.jpg", quality=90)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *told: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024  # img2dataset asks with 256 threads at once


def _serve(folder: Path, cores: Sequence[int], port: Connection) -> None:
    os.sched_setaffinity(0, cores)
    with _Server((HOST, 0), partial(_Quiet, directory=str(folder))) as server:
        port.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def _served(folder: Path, cores: Sequence[int]) -> Iterator[str]:
    """Serves a folder from a process of its own. Yields the address before a file's name."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(folder, cores, there), daemon=True)
    server.start()
    try:
        yield f"http://{HOST}:{here.recv()}"
    finally:
        server.terminate()
        server.join()


def _measure(asked: Asked, repeats: int) -> list[Rate]:
    """Runs each tool with each source, few rows and all, in turn."""
    lines = list(product((HTTP, DISK), (IMG2DATASET, PNP_BATCH)))
    found: dict[tuple[str, str, int], list[float]] = {}
    for repeat in range(repeats):
        for (source, tool), rows in product(lines, (asked.few, asked.rows)):
            seconds = _seconds(asked, tool, source, rows)
            found.setdefault((source, tool, rows), []).append(seconds)
            told = f"{tool} from {source}: {rows} rows in {seconds:.1f} s"
            click.echo(f"{repeat + 1}: {told}", err=True)
    return [_rate(asked, tool, source, found) for source, tool in lines]


def _rate(
    asked: Asked, tool: str, source: str, found: Mapping[tuple[str, str, int], Sequence[float]]
) -> Rate:
    whole, few = (median(found[source, tool, rows]) for rows in (asked.rows, asked.few))
    if whole <= few:
        raise click.ClickException(
            f"{tool}: {asked.rows} rows took no longer than {asked.few}; use more --rows"
        )
    rate = (asked.rows - asked.few) / (whole - few)
    return Rate(tool, source, rate, few - asked.few / rate, whole, few)


def _seconds(asked: Asked, tool: str, source: str, rows: int) -> float:
    """Seconds of a whole run of a tool. Raises `ClickException` unless it wrote every row."""
    output = asked.folder / "output"
    prefix = asked.server if source == HTTP else (asked.folder / "pictures").as_uri()
    uris = [f"{prefix}/{number:06d}.jpg" for number in range(rows)]
    command = (_img2dataset if tool == IMG2DATASET else _pnp_batch)(asked, uris, output)
    told = asked.folder / "told"
    silent = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # it asks the network at each start
    begun = time.perf_counter()
    with told.open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=silent, check=False)
    seconds = time.perf_counter() - begun
    made = _made(tool, asked, output)
    if done.returncode or made != rows:
        last = "\n".join(told.read_text().splitlines()[-TOLD_LINES:])
        raise click.ClickException(f"{tool}: {made} of {rows} rows, exit {done.returncode}\n{last}")
    shutil.rmtree(output)
    return seconds


def _img2dataset(asked: Asked, uris: Sequence[str], output: Path) -> list[str]:
    listed = asked.folder / "urls.txt"
    listed.write_text("".join(f"{uri}\n" for uri in uris))
    options = {
        "url_list": listed,
        "output_folder": output,
        "output_format": asked.output_format,
        "encode_format": "jpg",
        "image_size": asked.size,
        "resize_mode": "center_crop",
        "processes_count": 1,
    }
    return [str(asked.program), *(f"--{name}={value}" for name, value in options.items())]


def _pnp_batch(asked: Asked, uris: Sequence[str], output: Path) -> list[str]:
    manifest = asked.folder / "manifest.parquet"
    names = [f"{number:06d}" for number in range(len(uris))]
    prompts = ["not used by copy"] * len(uris)
    pq.write_table(pa.table({"row_id": names, "image": list(uris), "prompt": prompts}), manifest)
    command = [sys.executable, "-m", "pnp_batch", "run", str(manifest), "--output", str(output)]
    command += ["--method", "copy", "--image-format", "jpg", "--resolution", str(asked.size)]
    command += ["--workers", "1", "--device", "cpu"]
    return [*command, "--allow-host", HOST, "--allow-root", str(asked.folder / "pictures")]


def _made(tool: str, asked: Asked, output: Path) -> int:
    """How many pictures a run wrote, as files or, of img2dataset in shards, as it tells."""
    if tool == IMG2DATASET and asked.output_format != "files":
        shards = [json.loads(path.read_text()) for path in output.glob("*_stats.json")]
        return sum(int(shard["successes"]) for shard in shards)
    return sum(1 for _ in output.rglob("*.jpg"))


def _markdown(rates: Sequence[Rate], asked: Asked, repeats: int) -> Iterator[str]:
    yield (
        f"{asked.rows} JPEG files of {LEAST} to {MOST} px to {asked.size} x {asked.size} px JPEG "
        f"on one core, medians of {repeats}; img2dataset writes {asked.output_format}.\n"
    )
    yield "| tool | reads from | rows/s | of img2dataset's | start, s | rows/s, start included |"
    yield "|---" * 6 + "|"
    base = {rate.source: rate.rows_per_second for rate in rates if rate.tool == IMG2DATASET}
    for rate in rates:
        yield (
            f"| {rate.tool} | {rate.source} | {rate.rows_per_second:.1f} "
            f"| {rate.rows_per_second / base[rate.source]:.2f} | {rate.start_seconds:.1f} "
            f"| {asked.rows / rate.seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
