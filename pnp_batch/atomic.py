"""Local files that appear whole or not at all: bytes in, a file or an exception out.

They are written under a temporary name, which says whose it is: `sweep` removes those of writers
that were killed.
"""

from __future__ import annotations

import os
import posixpath
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pnp_batch.process import machine, runs

TEMPORARY = ".tmp-"
# The oldest that a temporary file of a living writer can be.
TEMPORARY_SECONDS = 3600.0


def write(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Writes a file, and the folders above it where they are missing.

    Raises:
        FileExistsError: it is there, and is not to be replaced.
        OSError: it cannot be written; what was there still is.
    """
    try:
        _publish(path, data, replace=replace)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        _publish(path, data, replace=replace)


@contextmanager
def opened(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write into, for what is too large to be held; it appears when the block has ended.

    It is written beside the target, in a folder that is there, then gets its name in one step.

    Raises:
        FileExistsError: the target is there, and is not to be replaced.
        OSError: it cannot be written; what was there still is.
    """
    writer = f"{machine()}-{os.getpid()}"
    temporary = path.parent / f"{TEMPORARY}{writer}-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # fails where the target exists
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is being written, or was when its writer died."""
    return posixpath.basename(name).startswith(TEMPORARY)


def sweep(folder: Path) -> None:
    """Removes the temporary files below a folder that killed writers have left."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # its writer lives, and has just ended
            if _is_abandoned(path):
                path.unlink()


def _publish(path: Path, data: bytes, *, replace: bool) -> None:
    with opened(path, replace=replace) as file:
        file.write(data)


def _is_abandoned(path: Path) -> bool:
    where, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    pid = rest.partition("-")[0]
    if where == machine() and pid.isdigit() and not runs(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > TEMPORARY_SECONDS
