"""Protections taken out of the package, one at a time, to see whether the experiments notice.

Python imports this file when it starts with this folder on PYTHONPATH; Ray's workers inherit both.
`FAULTS_MUTANT` names one function here, which changes a module of the package right after that is
imported. A new mutation is a function under `@of(module)`, and a line in `tests/faults/noticed.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from copy import copy
from dataclasses import replace
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE = "FAULTS_MUTANT"
MUTANTS: dict[str, tuple[str, Callable[[Any], None]]] = {}


def of(module: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a function that takes a protection out of a module once it is imported."""

    def register(change: Callable[[Any], None]) -> Callable[[Any], None]:
        MUTANTS[change.__name__] = module, change
        return change

    return register


@of("pnp_batch.atomic")
def torn_write(atomic: Any) -> None:
    """Local files are written in place and in two halves."""

    def write(path: Any, data: bytes, *, replace: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if replace else "xb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.001)  # long enough to be seen
            file.write(data[len(data) // 2 :])

    atomic.write = write


@of("pnp_batch.storage")
def no_retry(storage: Any) -> None:
    """No storage call is tried again."""
    kept = storage.Storage._tried

    def once(self: Any, verb: str, name: str, work: Callable[[], Any]) -> Any:
        hasty, failures = copy(self), []
        hasty.patience = -1.0

        def done_once() -> Any:
            if failures:  # another attempt fares as the first one did
                raise failures[0]
            try:
                return work()
            except Exception as failure:
                failures.append(failure)
                raise

        return kept(hasty, verb, name, done_once)

    storage.Storage._tried = once


@of("pnp_batch.storage")
def no_sweep(storage: Any) -> None:
    """What killed writers have left stays."""
    storage.Storage.sweep = lambda self: None


@of("pnp_batch.storage")
def no_read_back(storage: Any) -> None:
    """A creation whose answer was lost counts as another writer's."""

    def create(self: Any, name: str, data: bytes) -> bool:
        try:
            self._put(name, data, **self.store.create())
        except storage.storage_errors():
            if self.read_if_there(name) is None:
                raise
            return False
        return True

    storage.Storage._create = create


@of("pnp_batch.storage")
def failures_are_absences(storage: Any) -> None:
    """A file that cannot be asked for counts as one that is not there."""
    asked = storage.Storage._info

    def info(self: Any, name: str) -> Any:
        hasty = copy(self)
        hasty.patience = -1.0
        try:
            return asked(hasty, name)
        except storage.StorageUnavailable:
            return None

    storage.Storage._info = info


@of("pnp_batch.parts")
def results_trusted(parts: Any) -> None:
    """Result files are read without a look at their digest."""

    class AnyName(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    named = parts._name
    parts._name = lambda data: AnyName(named(data))


@of("pnp_batch.latents")
def latents_trusted(latents: Any) -> None:
    """Whatever opens as a cache entry is used."""

    def get(self: Any, key: str) -> Any:
        data = self.storage.read_if_there(self.name(key))
        try:
            return None if data is None else latents.load(data)[latents.TENSOR]
        except (latents.SafetensorError, KeyError):
            self.damaged += 1
            return None

    latents.LatentCache.get = get


@of("pnp_batch.lease")
def no_lease(lease: Any) -> None:
    """Whoever asks for the lease has it."""

    def acquired(output: Any, wait: bool, waiting: Any) -> Any:
        mine = lease.Holder.this_process()
        output.write(lease.NAME, lease._body(mine))
        return lease.Lease(output, mine, waited=False)

    lease._acquired = acquired


@of("pnp_batch.attempts")
def no_attempts(attempts: Any) -> None:
    """Whatever died before is tried again together."""
    verdict = attempts.Verdict
    attempts.Attempts.verdict = lambda self, names: verdict(together=tuple(names))


@of("pnp_batch.sink")
def record_first(sink: Any) -> None:
    """The record is written before the images that it names."""
    kept = sink.write

    class Late:
        """Keeps images back until the record is written."""

        def __init__(self, storage: Any) -> None:
            self.storage, self.late = storage, []

        def write(self, name: str, data: bytes) -> None:
            if name.startswith("images/"):
                self.late.append((name, data))
            else:
                self.storage.write(name, data)

    def write(table: Any, storage: Any, *rest: Any) -> Any:
        late = Late(storage)
        recorded = kept(table, late, *rest)
        time.sleep(1)
        for name, data in late.late:
            storage.write(name, data)
        return recorded

    sink.write = write


@of("pnp_batch.job")
def no_anti_join(job: Any) -> None:
    """A resumed run does everything again."""
    kept = job.prepare

    def prepare(config: Any, **how: Any) -> Any:
        made = kept(config, **how)
        return replace(made, todo=job.np.arange(made.total, dtype=made.todo.dtype))

    job.prepare = prepare


@of("pnp_batch.execution")
def no_drain(execution: Any) -> None:
    """What is in flight is not waited for."""
    execution.Execution.draining = property(lambda self: 1e9 if self._stopping else 0.0)


@of("pnp_batch.engine")
def no_padding(engine: Any) -> None:
    """Batches have the shape of what is left to do."""
    kept = engine.pack

    def pack(rows: Any) -> Any:
        for grid in kept(rows):
            yield engine._tight(grid.rows)

    engine.pack = pack


@of("pnp_batch.record")
def environment_recorded(record: Any) -> None:
    """The versions in `run.json` come with the environment."""
    kept = record.versions
    record.versions = lambda: {**kept(), **os.environ}


@of("pnp_batch.job")
def pixels_in_driver(job: Any) -> None:
    """The driver holds as many bytes for each row as a small picture has."""
    kept = job.places

    def places(image: Any, *args: Any, **named: Any) -> Any:
        job.held = [os.urandom(32 * 32 * 3) for _ in range(len(image))]
        return kept(image, *args, **named)

    job.places = places


class _AfterImport(MetaPathFinder):
    """Finds one module as everybody does, and has it changed once it is executed."""

    def __init__(self, module: str, change: Callable[[Any], None]) -> None:
        self._module, self._change = module, change

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that changes the module."""
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        loader.exec_module = execute_and_change
        return spec


if chosen := os.environ.get(VARIABLE):
    sys.meta_path.insert(0, _AfterImport(*MUTANTS[chosen]))
