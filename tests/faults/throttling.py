"""P7, throttling and outages of the store are lived through; one that does not end is an error."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
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
SHARES = (0.01, 0.1, 0.5)
ERROR = re.compile(r"error: cannot [^\n]+ s3://[^\n]+\nhint: [^\n]+\n?\Z")


def experiment(folder: Path, long: bool) -> Outcome:
    """One throttled run on moto; in the long form several, on both stores. Both with an outage."""
    with ThreadPoolExecutor() as pool:  # who meets no store only waits
        without = pool.submit(hopeless, folder / "hopeless")
        if not long:
            return Outcome.joined([once(folder), without.result()])
        parts = [throttled(folder / "moto", servers.moto(), SHARES)]
        parts += [throttled(folder / "weed", servers.seaweedfs(), SHARES)]
        return Outcome.joined([*parts, without.result()])


def once(folder: Path) -> Outcome:
    """One throttled run on moto."""
    return throttled(folder, servers.moto(), (0.2,), outage=5.0)


def throttled(
    folder: Path,
    server: AbstractContextManager[servers.Server],
    shares: tuple[float, ...],
    outage: float = 15.0,
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
            code, told = _with_an_outage(job, faulty, share, outage)
            found = judge(place, Expectation(row_ids(manifest), may_fail=()))
            if code or "Traceback" in told:
                found.insert(0, f"exit code {code}: {told[-300:]}")
            findings += [f"{share:.0%} of the calls refused: {said}" for said in found]
        harmed = sum(bool(record.faults) for record in faulty.records())
        if Kind.OUTAGE not in {kind for record in faulty.records() for kind in record.faults}:
            findings.append("no call met the outage")
    return Outcome(len(shares), harmed, len(shares) * ROWS, tuple(findings))


def _with_an_outage(
    job: jobs.Job, faulty: proxy.Proxy, share: float, seconds: float
) -> tuple[int, str]:
    """Runs a throttled job, and lets the store be gone for a while once an image is written."""
    fault = Fault(Kind.SLOW_DOWN, share=share)
    faulty.use(fault)
    before = len(faulty.records())
    with job.started() as running:
        while running.driver.poll() is None:
            records = faulty.records()[before:]
            if any(r.method == "PUT" and "/images/" in r.path for r in records):
                break
            time.sleep(0.05)
        faulty.use(Fault(Kind.OUTAGE, between=(0, seconds)), fault)
        return running.wait(), running.told()


def hopeless(folder: Path) -> Outcome:
    """The store is gone for good: two lines and exit code 1, long before the run's own patience."""
    folder.mkdir(parents=True)
    manifest = jobs.manifest(folder / "manifest.parquet", 2)
    store = servers.Store(f"http://127.0.0.1:{servers.free_ports(1)[0]}", "a", "b", "faults")
    code, told = jobs.Job(manifest, store.uri("p7"), FLAGS, store.environ()).run()
    well = code == 1 and ERROR.search(told) and "Traceback" not in told
    return Outcome(1, 1, 2, () if well else (f"no store at all: exit code {code}, {told[-300:]}",))
