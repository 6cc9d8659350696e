"""Protections taken out of the package, one at a time, to see whether the experiments notice.

Python imports this file when it starts with this folder on PYTHONPATH; Ray's workers inherit both.
`FAULTS_MUTANT` names one function here, which changes a module of the package right after that is
imported. A new mutation is a new function under `@of(module)`, and a line in `tests/faults/noticed.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
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


@of("pnp_batch.storage")
def torn_write(storage: Any) -> None:
    """Local files are written in place and in two halves."""

    def write(path: Any, data: bytes, *, replace: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if replace else "xb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.001)  # long enough to be seen
            file.write(data[len(data) // 2 :])

    storage._write_local = write


@of("pnp_batch.storage")
def no_retry(storage: Any) -> None:
    """No storage call is tried again."""
    kept = storage.Storage._tried

    def once(self: Any, verb: str, name: str, work: Callable[[], Any]) -> Any:
        patience, self.patience = self.patience, -1.0
        try:
            return kept(self, verb, name, work)
        finally:
            self.patience = patience

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
            self._put(name, data, mode="create")
        except (FileExistsError, *storage.storage_errors()):
            if self.read_if_there(name) is None:
                raise
            return False
        return True

    storage.Storage._create = create


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
