"""Processes: which machine this is, and whether a process of it still runs."""

from __future__ import annotations

import hashlib
import os
import platform
import uuid
from functools import cache
from pathlib import Path


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
