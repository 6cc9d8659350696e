"""Processes: which machine this is, whether one of its processes runs, their folders and memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import tempfile
import uuid
from functools import cache
from pathlib import Path

# Ray reads it while it is imported: whether sockets are bound to the node's address or to loopback.
MANY_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Set in a job that was submitted: Ray is then here, wherever its dashboard is seen from elsewhere.
SUBMITTED = "PNP_BATCH_SUBMITTED"
FOLDER_PREFIX = "pnp-"  # short: Ray puts sockets below it, whose paths have a limit


@cache
def machine() -> str:
    """Names what process numbers are counted in: this boot of this machine or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        told = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        told = f"{platform.node()} {uuid.getnode():x}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def runs(pid: int) -> bool:
    """True while there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def reachable(address: str | None) -> None:
    """Lets this process be reached by the nodes of a cluster; to be called before Ray is imported.

    Args:
        address: of the cluster; None for a private Ray, which is nobody else's.
    """
    if address is not None:
        os.environ[MANY_NODES] = "1"


def elsewhere(address: str | None) -> bool:
    """Whether a job of this address is one to submit: a dashboard's, and not yet submitted."""
    return (address or "").startswith(("http://", "https://")) and SUBMITTED not in os.environ


def trim_memory() -> None:
    """Gives the system back what freed arrays and tables have left behind.

    They stay with the process otherwise, each beside the next one's.
    """
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None)
    if trim is not None:
        trim(0)


def temporary_folder() -> str:
    """A new folder for this process; those that killed processes have left are removed on the way.

    Whoever asks for it removes it.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        pid = left.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
