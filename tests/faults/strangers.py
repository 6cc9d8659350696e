"""P10: one job over rows from strangers: each bad row ends as itself, the others as if without it.

Seen from outside: the process tree's memory, the servers' own logs, and everything that is written
while the run lives, in which the secrets of its environment are searched for.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults import jobs
from tests.faults.goods import good_files
from tests.faults.memory import resident, sampled
from tests.faults.oracle import Expectation, judge
from tests.faults.poison import MIB, poison
from tests.faults.promise import Outcome
from tests.pictures import PNG
from tests.source.site import SECRET, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.faults.places import Place
    from tests.faults.poison import Poison
    from tests.source.site import Site

POISON_SHARE, LONG_POISON_SHARE = 0.4, 0.05
# Of all processes together; Ray and its workers, which follow the cores in number, are most of it.
LARGEST_MIB = 3072 + 512 * (os.cpu_count() or 1)
SIDE, WEB = 32, 20
SECRETS = {
    "AWS_ACCESS_KEY_ID": "canary-of-the-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key",
    "AWS_SESSION_TOKEN": "canary-of-the-session",
    "HF_TOKEN": "canary-of-the-hub",
    "RAY_AUTH_TOKEN": "canary-of-the-cluster-0123456789abcdef",
}
ENVIRON = {**SECRETS, "RAY_AUTH_MODE": "token"}


def experiment(folder: Path, long: bool) -> Outcome:
    """Every kind of bad row among good ones, as many as that is 40 % or, in the long form, 5 %."""
    there = folder / "manifest"
    (there / "images").mkdir(parents=True)
    with serving() as site, serving() as canary:
        bad = {f"bad-{n}": row for n, row in enumerate(poison(there, site, canary))}
        share = LONG_POISON_SHARE if long else POISON_SHARE
        good = _good(there, round(len(bad) / share) - len(bad))
        good |= {f"web-{n}": site.uri(f"a.png?{n}") for n in range(WEB)}
        images = {name: row.image for name, row in bad.items()} | good
        job = _job(_manifest(there, images), folder / "output", site)
        with TemporaryDirectory(prefix="pf-") as kept, job.started() as running:
            with _watched(running, Path(kept)) as memory:
                code = running.wait()
            told = running.told()
            written = {"stderr": told.encode(), **_written(Path(kept), job.seen)}
        findings = [f"the canary was asked for {hit}" for hit in canary.hits]
        read = len({hit for hit in site.hits if hit.startswith("/a.png?")})
        findings += [f"of {WEB} images {read} were read"] if read != WEB else []
    findings += [f"the run ended with {code}: {told}"] if code else []
    if max(memory) > LARGEST_MIB:
        findings.append(f"the processes grew to {max(memory):.0f} MiB")
    findings += judge(job.seen, Expectation(list(images), may_fail=list(bad)))
    findings += _of_rows(job.seen, bad, good)
    findings += secrets_in(written)
    if not any(name.endswith(".log") for name in written):
        findings.append("of what Ray has written nothing was seen")
    return Outcome(1, len(bad), len(images), tuple(findings))


def once(folder: Path) -> Outcome:
    """The short form."""
    return experiment(folder, long=False)


def secrets_in(written: dict[str, bytes]) -> list[str]:
    """A finding for each secret of the environment in something written."""
    return [
        f"{variable} stands in {name}"
        for name, data in written.items()
        for variable, secret in SECRETS.items()
        if secret.encode() in data
    ]


def _of_rows(output: Place, bad: dict[str, Poison], good: dict[str, Any]) -> Iterator[str]:
    columns = ("status", "error_type", "error_message", "output", "sha256", "width", "height")
    rows = jobs.results(output, *columns)
    for name in sorted(bad.keys() & rows.keys()):
        row = rows[name]
        if not _is_right(bad[name], row):
            shown = str(bad[name].image)[:200]
            yield f"{shown}: {row['error_type']}: {row['error_message']}"
    for name in sorted(good.keys() & rows.keys()):
        row = rows[name]
        if row["status"] == "ok":
            data = output.read(row["output"])
            if not (data.startswith(PNG[:8]) and data.endswith(PNG[-8:])):
                yield f"what followed the picture of {name} was copied"
            if (row["width"], row["height"]) != (SIDE, SIDE):
                yield f"{name} is {row['width']} x {row['height']}"
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                yield f"{name} has another sha256 than recorded"


def _is_right(expected: Poison, row: dict[str, Any]) -> bool:
    message = row["error_message"] or ""
    return (
        (row["status"], row["error_type"]) == ("error", expected.error_type)
        and row["output"] is None
        and message.startswith(expected.named)
        and expected.advice in message
        and message.isprintable()
        and len(message) < 1000
        and SECRET not in message
    )


def _good(folder: Path, count: int) -> dict[str, str | bytes]:
    """Good neighbours: every format and mode, with an archive behind each, as file and as bytes."""
    names: list[str | bytes] = []
    for number, data in enumerate(good_files().values()):
        (folder / "images" / f"{number}.png").write_bytes(data + b"PK\3\4 archive")
        names += [f"images/{number}.png", data]
    return {f"good-{n}": names[n % len(names)] for n in range(count)}


def _manifest(folder: Path, images: dict[str, str | bytes]) -> Path:
    names = sorted(images, key=lambda name: Random(name).random())
    cells = [
        {"bytes" if isinstance(images[name], bytes) else "path": images[name]} for name in names
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"row_id": names, "image": pa.array(cells, kind), "prompt": ["a cat"] * len(names)}
    pq.write_table(pa.table(table), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def _job(manifest: Path, output: Path, site: Site) -> jobs.Job:
    flags = ("--method", "copy", "--device", "cpu", "--workers", "1", "--resolution", str(SIDE))
    flags += ("--max-image-mib", str(MIB), "--read-timeout", "120", "--allow-root", "/dev")
    for host in (site.address, "localhost", "127.1", "2130706433"):
        flags += ("--allow-host", host)
    return jobs.Job(manifest, str(output), flags, ENVIRON)


def _watched(running: jobs.Running, kept: Path) -> AbstractContextManager[list[float]]:
    """MiB that are resident in the run's processes while a block runs.

    What they write to temporary files is kept, by links in `kept` that outlive the files.
    """

    def measure() -> float:
        _keep(running.folder, kept)
        return resident(process for some in running.processes().values() for process in some)

    return sampled(measure)


def _keep(folder: Path, kept: Path) -> None:
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                path = os.path.join(at, name)  # noqa: PTH118 - many, several times a second
                target = kept / f"{os.stat(path).st_ino}-{name}"  # noqa: PTH116
                if os.path.isfile(path) and not target.exists():  # noqa: PTH113
                    target.hardlink_to(path)


def _written(kept: Path, output: Place) -> dict[str, bytes]:
    """Everything that the run has written, results as text."""
    written = {path.name: path.read_bytes() for path in kept.iterdir()}
    for name in output.names():
        data = output.read(name)
        if name.endswith(".parquet"):
            data = str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        written[name] = data
    return written
