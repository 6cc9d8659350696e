"""Every operation of the storage layer, with each of its calls failing once in every way.

In: a server behind the fault proxy. Out: what was returned or left otherwise than without faults.
A call costs milliseconds here, as no run is started; `storage_calls` does the same with real runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch import lease, record, results, storage
from pnp_batch.errors import JobError
from pnp_batch.latents import LatentCache
from pnp_batch.storage import Storage, StorageUnavailable
from tests.faults import proxy, servers
from tests.faults.places import Prefix
from tests.faults.plan import Fault, Kind
from tests.faults.promise import Outcome

EVERY = tuple(kind for kind in Kind if kind not in (Kind.LATE, Kind.OUTAGE))
FEW, HOPELESS = (Kind.LOST, Kind.TRUNCATED, Kind.FLIPPED), Kind.LOST
# A run keeps on for longer, and waits longer for one call.
PATIENCE, HOPELESS_SECONDS, PAUSE = 30.0, 0.1, 0.02
CALL_SECONDS, HANG_SECONDS = 20.0, 0.4
RESULTS = "*/results/*"  # the only files here that say when a bit of them is wrong
FAILED = (JobError, OSError, ValueError)  # of the package, of the store, of Arrow
OLD, NEW = b"old" * 3000, b"new" * 5000


@dataclass(frozen=True)
class Operation:
    """Something that the package does with a storage.

    Attributes:
        does: it; what it returns must not depend on faults.
        before: files that are there before, by name.
        digested: whether it notices flipped bits too.
    """

    does: Callable[[Storage], Any]
    before: dict[str, bytes]
    digested: bool = False


def few(folder: Path) -> Outcome:
    """Each call fails in those ways that leave the most behind."""
    return calls(folder, FEW)


def every(folder: Path) -> Outcome:
    """Each call fails in every way."""
    return calls(folder, EVERY)


def only(folder: Path, name: str) -> Outcome:
    """Each call of one operation fails as in `few`."""
    return calls(folder, FEW, [name])


def calls(folder: Path, kinds: Sequence[Kind], names: Sequence[str] = ()) -> Outcome:
    """Operations, with each of their calls failing once, and with all of them failing.

    Changes the environment: it wants a process of its own.
    """
    storage.FIRST_PAUSE, storage.LONGEST_PAUSE = PAUSE, PAUSE
    findings: list[str] = []
    faults, known = 0, operations()
    with servers.moto() as server, proxy.running(server.store.endpoint) as faulty:
        os.environ.update(server.store.at(faulty.endpoint).environ())
        for name in names or known:
            trial = _Trial(name, known[name], faulty, server.store)
            findings += trial.run(kinds)
            faults += trial.faults
    return Outcome(0, faults, 0, tuple(findings))


def operations() -> dict[str, Operation]:
    """What the package does with a storage, by what it is called here."""
    one, two, both = _table("a", "b"), _table("b", "c"), _table("a", "b", "c")
    trajectory = np.arange(4096, dtype=np.float32).reshape(4, 4, 16, 16)
    parts, apart = {**_part(one), **_part(two)}, {**_part(one), **_part(_table("c", "d"))}
    named = record.Record(config={}, settings={}, rows=3, started_at="", updated_at="")
    return {
        "read": Operation(lambda s: s.read("x"), {"x": OLD}),
        "read nothing": Operation(lambda s: s.read_if_there("x"), {}),
        "look": Operation(lambda s: (s.exists("x"), s.exists("y"), s.size("x")), {"x": OLD}),
        "list": Operation(lambda s: s.files("f"), {"f/x": OLD, "f/g/y": NEW, "z": OLD}),
        "list nothing": Operation(lambda s: s.files("f"), {"z": OLD}),
        "write": Operation(lambda s: s.write("f/x", NEW), {}),
        "replace": Operation(lambda s: s.write("x", NEW), {"x": OLD}),
        "create": Operation(lambda s: s.create("x", NEW), {}),
        "create what is there": Operation(lambda s: s.create("x", NEW), {"x": OLD}),
        "delete": Operation(lambda s: s.delete("x"), {"x": OLD, "y": OLD}),
        "record rows": Operation(lambda s: results.write(s, one), {}),
        "read rows": Operation(lambda s: results.read(s).to_pylist(), apart, digested=True),
        "settle": Operation(results.settle, parts, digested=True),
        "settle one": Operation(results.settle, _part(both), digested=True),
        "put latents": Operation(lambda s: LatentCache(s).put("ab1", trajectory), {}),
        "record the run": Operation(lambda s: record.write(s, named), {"run.json": OLD}),
        "hold the lease": Operation(_leased, {"x": OLD}),
    }


def _table(*names: str) -> pa.Table:
    # What compresses badly fills the middle of the file, where bits are flipped.
    prompts = {name: Random(name).randbytes(9000).hex() for name in names}
    row = {"status": "ok", "recorded_at": 0}
    rows = [{"row_id": name, "prompt": text, **row} for name, text in prompts.items()]
    return pa.Table.from_pylist(rows, schema=results.SCHEMA)


def _part(table: pa.Table) -> dict[str, bytes]:
    """The file that records a table."""
    kept: dict[str, bytes] = {}

    class Kept(Storage):
        def write(self, name: str, data: bytes) -> None:
            kept[name] = data

    results.write(Kept("/nowhere"), table)
    return kept


def _leased(output: Storage) -> bool:
    with lease.held(output, wait=False):
        held = lease.is_held(output)
    return held and not lease.is_held(output)


# What makes the name of a merged part new each time.
MARK = re.compile(r"\.[0-9a-f]{8}(?=\.parquet$)")


class _Trial:
    """One operation, done again and again on files of its own with another fault."""

    def __init__(
        self, name: str, operation: Operation, faulty: proxy.Proxy, store: servers.Store
    ) -> None:
        self._name, self._operation = name, operation
        self._faulty, self._store = faulty, store
        self._place = Prefix(store, "")
        self.faults = 0

    def run(self, kinds: Sequence[Kind]) -> Iterator[str]:
        """Does it without faults, then with each; yields what was wrong."""
        self._faulty.forget()
        wanted = self._done("without")
        records, after = self._faulty.records(), self._files()
        for kind in kinds:
            path = RESULTS if kind == Kind.FLIPPED else "*"
            fault = Fault(kind, path=path)
            targets = [f"{record.path}?{record.query}" for record in records]
            count = sum(map(fault.matches, [record.method for record in records], targets))
            for call in range(1, count + 1):
                where = f"{self._name}: call {call} of {count} {kind}"
                try:
                    got = self._done(f"{kind}-{call}", replace(fault, calls=(call,)))
                except FAILED as error:
                    yield f"{where}: {type(error).__name__}: {error}"
                    continue
                if got != wanted or self._files() != after:
                    yield f"{where}: returned {got!r:.60}, left {sorted(self._files())}"
        yield from self._without_hope(after)

    def _without_hope(self, after: Mapping[str, str]) -> Iterator[str]:
        """Nothing is ever answered as it should be: one clear error, and every file whole."""
        whole = {*map(_tag, self._operation.before.values()), *after.values()}
        where = f"{self._name}: every call {HOPELESS}"
        try:
            self._done("all", Fault(HOPELESS), patience=HOPELESS_SECONDS)
            yield f"{where}: no error"
        except FAILED as error:
            clear = isinstance(error, StorageUnavailable) and error.hint
            if not clear or not str(error).startswith("cannot "):
                yield f"{where}: {type(error).__name__}: {error}"
        left = self._files()
        if left.pop(lease.NAME, None):
            json.loads(self._place.read(lease.NAME))  # says something else each time
        if torn := [name for name, tag in left.items() if tag not in whole]:
            yield f"{where}: {torn} is neither the old nor the new"

    def _done(self, turn: str, *faults: Fault, patience: float = PATIENCE) -> object:
        """Does it on fresh files; returns what it returned."""
        at = f"{self._name}/{turn}".replace(" ", "-")
        self._place.prefix = f"{at}/"
        for name, data in self._operation.before.items():
            self._place.write(name, data)
        hangs = any(fault.kind == Kind.HANG for fault in faults)
        storage.CALL_SECONDS = HANG_SECONDS if hangs else CALL_SECONDS
        before = len(self._faulty.records())
        self._faulty.use(*faults)
        try:
            return self._operation.does(Storage(self._store.uri(at), patience))
        finally:
            self._faulty.use()
            self.faults += sum(bool(r.faults) for r in self._faulty.records()[before:])

    def _files(self) -> dict[str, str]:
        """The files by name, as the digests that the store has of them."""
        place = self._place
        found = place.client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix)
        files: dict[str, str] = {}
        for item in found.get("Contents", []):
            name = MARK.sub("", item["Key"].removeprefix(place.prefix))
            again = f"{name} again" if name in files else name
            files[again] = item["ETag"].strip('"')
        return files


def _tag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
