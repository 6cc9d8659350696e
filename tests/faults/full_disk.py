"""P8, a full disk is a clear error, and the resume passes.

The disk is a small tmpfs: mounted where that is allowed, else in a user namespace of its own
(`unshare`). Where neither is allowed, only the limit on a file's size is left to fill; the storage
layer then meets a write that ends half way, which needs no rights and is done everywhere.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from tests.faults import jobs, noticed
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Place
from tests.faults.promise import Outcome

ROWS = 40
FLAGS = ("--method", "copy", "--workers", "1")
ERROR = re.compile(r"error: [^\n]*No space left on device[^\n]*\nhint: [^\n]*room[^\n]*\n?\Z")
TWO_LINES = re.compile(r"error: [^\n]+\nhint: [^\n]+\n?\Z")
OUTPUT_SIZE, TEMPORARY_SIZE, ENOUGH = "100k", "64k", "64m"
APART = ["unshare", "--map-root-user", "--mount"]
# The kernel ends a write at 64 KiB: as on a full disk, a part of the bytes is there.
LIMITED = """
import resource, signal, sys
from pnp_batch.storage import Storage, StorageUnavailable
root = Storage(sys.argv[1])
root.write("x", b"old" * 10_000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
for write in (root.write, root.create):
    for name in ("x", "y"):
        try:
            answer = write(name, b"new" * 100_000)
        except StorageUnavailable as error:
            assert "room" in error.hint, error.hint
        else:
            assert (write, name, answer) == (root.create, "x", False), (write, name)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert root.read("x") == b"old" * 10_000, "the old file is torn"
assert list(root.listing()) == ["x"], list(root.listing())
root.write("x", b"new" * 100_000)
"""


def experiment(folder: Path, long: bool) -> Outcome:
    """A write that ends half way, and a run on a small disk; in the long form resumed, and more."""
    parts = [limited(folder / "limited")]
    checks = ("output", "temporary") if long else ("filled",)
    for check in checks:
        where = folder / check
        where.mkdir(parents=True, exist_ok=True)
        if _may([], where):
            parts.append(globals()[check](where))
        elif _may(APART, where):
            parts.append(noticed.outcome(f"full_disk:{check}", where, prefix=APART))
    return Outcome.joined(parts)


def limited(folder: Path) -> Outcome:
    """Writes that the kernel ends half way: an error with a hint, the old file, nothing more."""
    command = [sys.executable, "-c", LIMITED, str(folder)]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=False)
    told = done.stderr.strip().splitlines()[-1:]
    findings = [f"writes that end half way: {told}"] if done.returncode else []
    return Outcome(0, 4, 0, tuple(findings))


def filled(folder: Path) -> Outcome:
    """The output's disk fills up in the middle of a run."""
    with _small_disk(folder / "disk", OUTPUT_SIZE) as disk:
        findings = _until_full(_job(folder, disk))
    return Outcome(1, 1, ROWS, tuple(findings))


def output(folder: Path) -> Outcome:
    """The output's disk fills up in the middle of a run; with more room it goes on."""
    with _small_disk(folder / "disk", OUTPUT_SIZE) as disk:
        job = _job(folder, disk)
        findings = _until_full(job)
        _mount("-o", f"remount,size={ENOUGH}", str(disk))
        findings += _of_resume(job)
    return Outcome(2, 1, ROWS, tuple(findings))


def _job(folder: Path, disk: Path) -> jobs.Job:
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    return jobs.Job(manifest, str(disk / "output"), FLAGS)


def _until_full(job: jobs.Job) -> list[str]:
    code, told = job.run()
    return [*_of_error(code, told), *_torn(job.seen)]


def temporary(folder: Path) -> Outcome:
    """The disk of Ray's folder is too small for it; with another one the run goes on."""
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    with _small_disk(folder / "disk", TEMPORARY_SIZE) as disk:
        job = jobs.Job(manifest, str(folder / "output"), FLAGS, temporary=disk)
        code, told = job.run()
        findings = [] if TWO_LINES.search(told) and code == 1 else [f"{code}: {told[-300:]}"]
        findings += _of_resume(jobs.Job(manifest, job.output, FLAGS))
    return Outcome(2, 1, ROWS, tuple(findings))


def _of_error(code: int, told: str) -> list[str]:
    if code == 1 and ERROR.search(told) and "Traceback" not in told:
        return []
    return [f"a full disk ends with exit code {code} and {told[-400:]!r}"]


def _of_resume(job: jobs.Job) -> list[str]:
    code, told = job.run()
    findings = judge(job.seen, Expectation(row_ids(job.manifest), may_fail=()))
    return findings if code == 0 else [f"the resume ends with {code}: {told[-300:]}", *findings]


def _torn(place: Place) -> list[str]:
    """Files that do not open whole, while the disk is still full."""
    findings = []
    for name in place.names():
        data = io.BytesIO(place.read(name))
        try:
            if name.endswith(".parquet"):
                pq.read_table(data)
            elif name.endswith(".json"):
                json.load(data)
            elif not Path(name).name.startswith("."):
                with Image.open(data) as image:
                    image.load()
        except (OSError, SyntaxError, ValueError) as error:  # pyarrow's and JSON's are ValueErrors
            findings.append(f"on the full disk {name} is torn: {error}")
    return findings


@contextmanager
def _small_disk(at: Path, size: str) -> Iterator[Path]:
    at.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "pnp-batch-test", str(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _may(prefix: list[str], folder: Path) -> bool:
    """Whether a disk can be mounted here, or by a process that is started with a prefix."""
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size=64k probe "$1" && umount "$1"'
    command = [*prefix, "sh", "-c", script, "sh", str(probe)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # no unshare
        return False
