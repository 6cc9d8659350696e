"""P7, throttling and outages of the store are lived through; one that does not end is an error."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults import jobs, proxy, servers
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Prefix
from tests.faults.plan import Fault, Kind
from tests.faults.promise import Outcome

ROWS = 16
FLAGS = ("--method", "copy", "--workers", "1")
THROTTLED = (*FLAGS, "--storage-patience", "120")
OUTAGE_SECONDS = 12.0
ERROR = re.compile(r"error: cannot [^\n]+ s3://[^\n]+\nhint: [^\n]+\n?\Z")


def experiment(folder: Path, long: bool) -> Outcome:
    """Throttling with an outage on top; in the long form each alone, on both stores."""
    if not long:
        return Outcome.joined([once(folder), hopeless(folder)])
    shares = (0.01, 0.1, 0.5)
    parts = [throttled(folder / "moto", servers.moto(), shares)]
    parts += [throttled(folder / "weed", servers.seaweedfs(), shares)]
    return Outcome.joined([*parts, hopeless(folder / "hopeless")])


def once(folder: Path) -> Outcome:
    """One throttled run on moto."""
    return throttled(folder, servers.moto(), (0.2,))


def throttled(
    folder: Path, server: AbstractContextManager[servers.Server], shares: tuple[float, ...]
) -> Outcome:
    """Runs in which a share of the calls is refused, and all of them for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    findings: list[str] = []
    with server as real, proxy.running(real.store.endpoint) as faulty:
        environ = real.store.at(faulty.endpoint).environ()
        for share in shares:
            at = f"p7/{share}"
            place = Prefix(real.store, at)
            job = jobs.Job(manifest, real.store.uri(at), THROTTLED, environ, place)
            code, told = _with_an_outage(job, faulty, Fault(Kind.SLOW_DOWN, share=share))
            found = judge(place, Expectation(row_ids(manifest), may_fail=()))
            if code or "Traceback" in told:
                found.insert(0, f"exit code {code}: {told[-300:]}")
            findings += [f"{share:.0%} of the calls refused: {said}" for said in found]
        harmed = sum(bool(record.faults) for record in faulty.records())
        if Kind.OUTAGE not in {kind for record in faulty.records() for kind in record.faults}:
            findings.append("no call met the outage")
    return Outcome(len(shares), harmed, len(shares) * ROWS, tuple(findings))


def _with_an_outage(job: jobs.Job, faulty: proxy.Proxy, fault: Fault) -> tuple[int, str]:
    """Runs a job under a fault, and lets the store be gone for a while once an image is written."""
    faulty.use(fault)
    before = len(faulty.records())
    with job.started() as running:
        while running.driver.poll() is None:
            records = faulty.records()[before:]
            if any(r.method == "PUT" and "/images/" in r.path for r in records):
                break
            time.sleep(0.05)
        outage = Fault(Kind.OUTAGE, between=(0, OUTAGE_SECONDS))
        faulty.use(outage, fault)
        return running.wait(), running.told()


def hopeless(folder: Path) -> Outcome:
    """The store is gone for good: two lines and exit code 1, long before the run's own patience."""
    manifest = jobs.manifest(folder / "hopeless.parquet", 2)
    store = servers.Store(f"http://127.0.0.1:{servers.free_ports(1)[0]}", "a", "b", "faults")
    code, told = jobs.Job(manifest, store.uri("p7"), FLAGS, store.environ()).run()
    well = code == 1 and ERROR.search(told) and "Traceback" not in told
    return Outcome(1, 1, 2, () if well else (f"no store at all: exit code {code}, {told[-300:]}",))
