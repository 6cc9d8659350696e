"""The doctor: looks at what a run will need on this machine, and says what is wrong with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pnp_batch import models, record
from pnp_batch.errors import JobError
from pnp_batch.storage import Storage

GIB = 2**30
LEAST_DISK = 2 * GIB


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and a hint if it is a problem."""

    name: str
    found: str
    hint: str = ""

    @property
    def ok(self) -> bool:
        """False if a run would suffer from it."""
        return not self.hint


def examine(model: str, uris: Sequence[str]) -> Iterator[Check]:
    """Checks versions, machine, devices, a model, and the storage behind each URI."""
    checks: list[Callable[[], Check]] = [_versions, _machine, _disk, _devices, _ray]
    checks.append(lambda: _model(model))
    checks += [lambda uri=uri: _storage(uri) for uri in uris]  # type: ignore[misc]
    for check in checks:
        try:
            yield check()
        except JobError as error:
            yield Check("problem", str(error), error.hint or "see the message")


def _versions() -> Check:
    found = record.versions()
    return Check("versions", ", ".join(f"{name} {version}" for name, version in found.items()))


def _machine() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check("machine", f"{os.cpu_count()} cores, {memory / GIB:.1f} GiB of memory")


def _disk() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    return Check("temporary disk", found, "" if free > LEAST_DISK else "free some, or set TMPDIR")


def _devices() -> Check:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    found = ", ".join(names) or "no GPU: translations run on the CPU"
    return Check("devices", f"{found}; torch uses {torch.get_num_threads()} threads")


def _ray() -> Check:
    import ray

    return Check("ray", f"{ray.__version__} can be imported")


def _model(name: str) -> Check:
    begun = time.perf_counter()
    model = models.find(name)
    digest = model.digest
    seconds = time.perf_counter() - begun
    found = f"{name}: {model.resolution} px, digest {digest[:12]}, checked in {seconds:.1f} s"
    return Check("model", found)


def _storage(uri: str) -> Check:
    storage, name = Storage(uri), f"pnp-batch-probe-{uuid.uuid4().hex}"
    begun = time.perf_counter()
    try:
        storage.write(name, b"probe")
        same = storage.read(name) == b"probe"
    finally:
        storage.delete(name)
    seconds = time.perf_counter() - begun
    found = f"{uri}: written, read and deleted a probe in {seconds:.2f} s"
    return Check("storage", found, "" if same else "it returned other bytes than were written")
