"""The doctor: looks at what a run will need on this machine, and says what is wrong with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from pnp_batch import models, record
from pnp_batch.errors import JobError
from pnp_batch.storage import Storage, StorageUnavailable

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
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("machine", _machine),
        ("temporary disk", _disk),
        ("devices", _devices),
        ("ray", _ray),
        ("model", partial(_model, model)),
        *(("storage", partial(_storage, uri)) for uri in uris),
    ]
    for name, check in checks:
        try:
            yield Check(name, check())
        except JobError as error:
            yield Check(name, str(error), error.hint or "see the message")
        except (ImportError, OSError) as error:
            told = " ".join(str(error).split())
            yield Check(name, f"{type(error).__name__}: {told}", "install pnp-batch again")


class _Unfit(JobError):
    """What was found is a problem."""


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions().items())


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores, {memory / GIB:.1f} GiB of memory"


def _disk() -> str:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < LEAST_DISK:
        raise _Unfit(found, "free some, or set TMPDIR")
    return found


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    if not names and any(Path("/dev").glob("nvidia[0-9]*")):
        build = torch.version.cuda or "no CUDA at all"
        raise _Unfit(
            f"there is an NVIDIA GPU, but torch {torch.__version__}, made for {build}, sees none",
            "install the torch that fits the driver, or use --device cpu",
        )
    found = ", ".join(names) or "no GPU: translations run on the CPU"
    return f"{found}; torch uses {torch.get_num_threads()} threads"


def _ray() -> str:
    return f"{import_module('ray').__version__} can be imported"


def _model(name: str) -> str:
    begun = time.perf_counter()
    model = models.find(name)
    digest = model.digest
    seconds = time.perf_counter() - begun
    return f"{name}: {model.resolution} px, digest {digest[:12]}, checked in {seconds:.1f} s"


def _storage(uri: str) -> str:
    storage, name = Storage(uri), f"pnp-batch-probe-{uuid.uuid4().hex}"
    place, begun = storage.place, time.perf_counter()
    try:
        storage.write(name, b"probe")
        same = storage.read_if_there(name) == b"probe"
        storage.delete(name)
    except StorageUnavailable as error:
        raise _Unfit(f"{error} ({place})", error.hint) from error
    if not same:
        raise _Unfit(
            f"{uri}: what was written could not be read back ({place})", "use another storage"
        )
    seconds = time.perf_counter() - begun
    return f"{uri}: written, read and deleted a probe in {seconds:.2f} s, {place}"
