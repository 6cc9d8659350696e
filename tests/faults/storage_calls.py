"""P3, no torn file: each call that the package makes of its storage fails once, in every way.

`operations` does so with each operation of the storage layer, where a call costs milliseconds.
Here a file is read while it is replaced; a real run meets faults of every kind at random; and, in
the long form, call k = 1..K of real runs fails in every way.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

from pnp_batch.storage import Storage
from tests.faults import jobs, noticed, proxy, servers
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Prefix
from tests.faults.plan import Fault, Kind
from tests.faults.promise import Outcome

FLAGS = ("--method", "copy", "--workers", "1", "--batch-size", "2", "--storage-patience", "60")
ROWS, REPLACEMENTS = 20, 60
MIXTURE = (
    Fault(Kind.RESET, share=0.07, seed=1),
    Fault(Kind.LOST, method="PUT", share=0.07, seed=2),
    Fault(Kind.TRUNCATED, share=0.07, seed=3),
    Fault(Kind.SLOW_DOWN, share=0.07, seed=4),
    Fault(Kind.ERROR, share=0.07, seed=5),
    Fault(Kind.LATE, share=0.05, seed=6, seconds=0.5),
)
TURNS = (Kind.RESET, Kind.LOST, Kind.TRUNCATED, Kind.SLOW_DOWN, Kind.ERROR, Kind.HANG)


def experiment(folder: Path, long: bool) -> Outcome:
    """Every operation and a real run; in the long form real runs with each call failing."""
    parts = [noticed.outcome("operations:every" if long else "operations:few", folder)]
    parts += [replaced(folder), once(folder)]
    if long:
        parts.append(mixture(folder / "weed", servers.seaweedfs()))
        parts += [turns(folder / "turns moto", servers.moto())]
        parts += [turns(folder / "turns weed", servers.seaweedfs())]
    return Outcome.joined(parts)


def replaced(folder: Path) -> Outcome:
    """A file is read all the time while it is replaced: each reading is one of the versions."""
    root = Storage(str(folder / "replaced"))
    versions = [bytes([number]) * 300_000 for number in range(REPLACEMENTS)]
    root.write("x", versions[0])
    writer = threading.Thread(target=lambda: [root.write("x", version) for version in versions])
    writer.start()
    read = torn = 0
    while writer.is_alive():
        data = root.read("x")
        read, torn = read + 1, torn + (len(data) != 300_000 or len(set(data)) != 1)
    findings = [f"{torn} of {read} readings of a file being replaced are torn"] if torn else []
    findings += [f"{name} is left over" for name in root.listing() if name != "x"]
    return Outcome(0, 0, 0, tuple(findings))


def once(folder: Path) -> Outcome:
    """One run on moto with faults of every kind."""
    return mixture(folder, servers.moto())


def mixture(folder: Path, server: AbstractContextManager[servers.Server]) -> Outcome:
    """A real run in which about every third call of the store fails in some way."""
    return _runs(folder, server, [MIXTURE])


def turns(folder: Path, server: AbstractContextManager[servers.Server]) -> Outcome:
    """A run without faults counts its calls; then runs in which call k = 1..K fails, each way."""
    return _runs(folder, server, None)


def _runs(
    folder: Path,
    server: AbstractContextManager[servers.Server],
    plans: list[tuple[Fault, ...]] | None,
) -> Outcome:
    """Runs one after another, each into an output of its own and under its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    findings: list[str] = []
    number = harmed = 0
    with server as real, proxy.running(real.store.endpoint) as faulty:
        through = real.store.at(faulty.endpoint)
        coming = [()] if plans is None else plans
        while coming:
            faulty.forget()
            faulty.use(*coming[0])
            place = Prefix(real.store, f"p3/{number}")
            uri = real.store.uri(f"p3/{number}")
            code, told = jobs.Job(manifest, uri, FLAGS, through.environ(), place).run()
            faulty.use()
            found = judge(place, Expectation(row_ids(manifest), may_fail=()))
            if code or "Traceback" in told:
                found.insert(0, f"exit code {code}: {told[-300:]}")
            shown = " and ".join(f"{fault.kind} {fault.calls or ''}".strip() for fault in coming[0])
            findings += [f"{shown or 'no fault'}: {said}" for said in found]
            harmed += sum(bool(record.faults) for record in faulty.records())
            if plans is None and number == 0:
                calls = range(1, len(faulty.records()) + 1)
                coming += [(Fault(kind, calls=(k,)),) for k in calls for kind in TURNS]
            del coming[0]
            number += 1
    return Outcome(number, harmed, number * ROWS, tuple(findings))
