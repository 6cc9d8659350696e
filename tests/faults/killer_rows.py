"""P9: rows that kill, stall or break their worker each time end as errors, their neighbours are ok.

The worker that translates is killed from within, by a method that is ill; the one that reads images
from without, by the server it asks for the image.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, BinaryIO

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.world import draw, random_spec
from tests import tiny
from tests.faults import ill, jobs
from tests.faults.oracle import Expectation, judge, judge_cache
from tests.faults.places import Folder
from tests.faults.promise import Outcome
from tests.pictures import saved
from tests.source.site import serving

if TYPE_CHECKING:
    from pathlib import Path

SIDE, BATCH, ATTEMPTS, GOOD = 32, 4, 3, 7.5
LOADER = "loader"
# What is wrong with a row, how it must end, and how often it is begun until then, at most.
ENDS = {
    ill.KILLS: ("ModelError", ATTEMPTS),
    ill.HANGS: ("RowTimeout", 2),
    ill.RAISES: ("ModelError", 2),
    LOADER: ("ImageUndecodable", ATTEMPTS),
}


def experiment(folder: Path, long: bool) -> Outcome:
    """Rows that kill or break their worker; in the long form more of them, and two that hang."""
    if not long:
        return among_neighbours(folder, [ill.KILLS, ill.RAISES, LOADER], 8)
    return among_neighbours(folder, [*ENDS, *ENDS, ill.KILLS, LOADER], 60)


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def among_neighbours(folder: Path, bad: list[int | str], good: int) -> Outcome:
    """Runs a manifest of bad rows strewn among good ones."""
    environ = ill.installed(folder / "plug-in")
    model = tiny.save_model(folder / "model", "sd1")
    with serving() as site:
        rows = [_row(f"good-{n}", n, None) for n in range(good)]
        for number, what in enumerate(bad):
            name = f"bad-{number}"
            uri = site.uri(f"{name}.png") if what == LOADER else None
            site.routes[f"{name}.png"] = _kill_the_reader
            scale = GOOD if what == LOADER else what + number
            rows.append(_row(name, good + number, uri, scale))
        Random(1).shuffle(rows)
        pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
        flags = ("--model", str(model), "--method", "ill", "--steps", "2", "--row-timeout", "20")
        flags += ("--workers", "1", "--batch-size", str(BATCH), "--allow-host", site.address)
        # A cache apart, as it may have entries of rows that failed.
        flags += ("--cache", str(folder / "cache"))
        job = jobs.Job(folder / "manifest.parquet", str(folder / "out"), flags, environ)
        with job.started() as running:
            code = _ended(running, folder / "plug-in", jobs.PATIENCE / 3 * len(bad))
            told = running.told()
        reads = Counter(hit[1:].removesuffix(".png") for hit in site.hits)
    names = [f"bad-{number}" for number in range(len(bad))]
    findings = [] if code == 0 else [f"the run ended with {code}: {told}"]
    findings += judge(job.seen, Expectation([row["row_id"] for row in rows], may_fail=names))
    findings += judge_cache(Folder(folder / "cache"))
    ends = jobs.results(job.seen, "error_type")
    begun = _begun(folder / "plug-in")
    for number, (name, what) in enumerate(zip(names, bad, strict=True)):
        end, right = ends.get(name, {}).get("error_type"), ENDS[what][0]
        if end != right:
            findings.append(f"{name} ({what}) ended as {end}, not {right}")
        times = reads[name] if what == LOADER else begun[what + number]
        most = ENDS[what][1]
        if times > most or (times < most and most == ATTEMPTS):
            findings.append(f"{name} ({what}) was begun {times} times, not {most}")
    return Outcome(1, len(bad), len(rows), tuple(findings))


def _ended(running: jobs.Running, plug_in: Path, patience: float) -> int | None:
    """The exit code; None if it goes on for ever, or would, as a row is begun again and again."""
    deadline = time.monotonic() + patience
    while running.driver.poll() is None and time.monotonic() < deadline:
        if any(n > 2 * ATTEMPTS for scale, n in _begun(plug_in).items() if scale != GOOD):
            return None
        time.sleep(0.5)
    return running.driver.poll()


def _begun(plug_in: Path) -> Counter[float]:
    """How often a row of each scale was begun."""
    return Counter(scale for batch in ill.begun(plug_in) for scale in batch)


def _row(name: str, number: int, uri: str | None, scale: float = GOOD) -> dict[str, object]:
    picture = draw(random_spec(Random(number)), resolution=64).image.resize((SIDE, SIDE))
    image = {"bytes": None if uri else saved(picture), "path": uri}
    return {"row_id": name, "image": image, "prompt": "a cat", "guidance_scale": scale}


def _kill_the_reader(wire: BinaryIO) -> None:
    """Answers nothing: kills the process at the other end of the connection."""
    port = wire._sock.getpeername()[1]
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.pid:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(connection.pid).kill()
