"""P3, no torn file: each call that the package makes of its storage fails once, in every way.

`operations` does so with each operation of the storage layer, where a call costs milliseconds.
Here a file is read while it is replaced, and in the long form real runs meet faults: of every kind
at random, and in call k = 1..K of a run alone.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from pnp_batch import cluster, pipeline
from pnp_batch.config import RunConfig
from pnp_batch.errors import JobError
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
STORES = {"moto": servers.moto, "seaweedfs": servers.seaweedfs}
TURNS = (Kind.RESET, Kind.LOST, Kind.TRUNCATED, Kind.SLOW_DOWN, Kind.ERROR)
# A call that is never answered costs half a minute: only one in so many hangs.
HANGING = 8


def experiment(folder: Path, long: bool) -> Outcome:
    """Every operation; in the long form real runs too, with each of their calls failing."""
    parts = [noticed.outcome("operations:every" if long else "operations:few", folder)]
    parts += [replaced(folder)]
    if long:
        parts += [mixture(folder / name, store()) for name, store in STORES.items()]
        parts += [noticed.outcome(f"storage_calls:turns:{name}", folder) for name in STORES]
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
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    with server as real, proxy.running(real.store.endpoint) as faulty:
        faulty.use(*MIXTURE)
        place = Prefix(real.store, "p3")
        through = real.store.at(faulty.endpoint)
        job = jobs.Job(manifest, real.store.uri("p3"), FLAGS, through.environ(), place)
        code, told = job.run()
        harmed = sum(bool(record.faults) for record in faulty.records())
        findings = judge(place, Expectation(row_ids(manifest), may_fail=()))
    if code or "Traceback" in told:
        findings.insert(0, f"exit code {code}: {told[-300:]}")
    return Outcome(1, harmed, ROWS, tuple(findings))


def turns(folder: Path, name: str) -> Outcome:
    """A run without faults counts its calls; then runs in which call k = 1..K fails.

    The ways to fail take turns, in another order on each store: with all of them for each call it
    would be hours, and `operations` does those. All in this process and on one Ray.
    """
    manifest = jobs.manifest(folder / f"{name}.parquet", 4)
    with STORES[name]() as real, proxy.running(real.store.endpoint) as faulty:
        os.environ.update(real.store.at(faulty.endpoint).environ())
        with cluster.connected(None, workers=1):
            turn = partial(_turn, real.store, faulty, manifest)
            findings = turn(0, ())
            calls = len(faulty.records())
            first = list(STORES).index(name) * 2
            coming = [(Fault(_kind(k + first), calls=(k,)),) for k in range(1, calls + 1)]
            coming += [(Fault(Kind.HANG, calls=(k,)),) for k in range(1, calls + 1, HANGING)]
            for number, faults in enumerate(coming, 1):
                findings += turn(number, faults)
    runs = 1 + len(coming)
    return Outcome(runs, len(coming), 4 * runs, tuple(findings))


def _kind(number: int) -> Kind:
    return TURNS[number % len(TURNS)]


def _turn(
    store: servers.Store,
    faulty: proxy.Proxy,
    manifest: Path,
    number: int,
    faults: tuple[Fault, ...],
) -> list[str]:
    """One run under one fault, into an output of its own."""
    place = Prefix(store, f"turn/{number}")
    config = RunConfig(str(manifest), store.uri(f"turn/{number}"), method="copy", workers=1)
    faulty.forget()
    faulty.use(*faults)
    shown = " ".join(f"{fault.kind} of call {fault.calls}" for fault in faults) or "no fault"
    try:
        code = pipeline.run(config).exit_code
    except JobError as error:
        return [f"{shown}: {error}"]
    finally:
        faulty.use()
    found = judge(place, Expectation(row_ids(manifest), may_fail=()))
    found += [f"exit code {code}"] if code else []
    return [f"{shown}: {said}" for said in found]
