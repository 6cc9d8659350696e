"""The bytes of one guidance image, from wherever its URI may point.

In: an image URI and the job's `SourcePolicy`. Out: at most `max_bytes` bytes within `read_timeout`
seconds, or a `RowError`. The retries are here, those of the clients below are switched off.
"""

from __future__ import annotations

import errno
import os
import random
import ssl
import stat
import threading
import time
from pathlib import Path

from pnp_batch.client import call, client
from pnp_batch.errors import (
    ImageForbidden,
    ImageNotFound,
    RowError,
    RowTimeout,
    StorageError,
)
from pnp_batch.source.limits import Clock, check_bytes
from pnp_batch.source.policy import WEB_SCHEMES, SourcePolicy, locate, scheme_of, shown
from pnp_batch.source.web import read_web
from pnp_batch.stores import store_of

# No second attempt changes these.
_LASTING = (PermissionError, ImportError, ssl.SSLCertVerificationError)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def read_source(uri: str, policy: SourcePolicy) -> bytes:
    """The bytes that `uri` names, where `policy` allows them.

    Raises `ImageForbidden`, `ImageNotFound`, `ImageTooLarge`, `RowTimeout` or `StorageError`.
    """
    outcome: list[bytes | RowError] = []

    def work() -> None:
        outcome.append(_outcome(uri, policy, Clock(policy.read_timeout)))

    # A name server or network mount that hangs knows no time limit: the thread is left behind.
    thread = threading.Thread(target=work, name="pnp-batch-read", daemon=True)
    thread.start()
    thread.join(policy.read_timeout)
    if not outcome:
        raise _too_slow(uri, policy)
    if isinstance(outcome[0], RowError):
        raise outcome[0]
    return outcome[0]


def _outcome(uri: str, policy: SourcePolicy, clock: Clock) -> bytes | RowError:
    for attempt in range(1, policy.attempts + 1):
        try:
            return _read(uri, policy, clock)
        # Each client of an object store raises kinds of its own; they end the row, not the job.
        except Exception as error:  # noqa: BLE001
            failure = _as_row_error(error, uri, policy, clock)
            lasting = isinstance(error, _LASTING) or not isinstance(failure, StorageError)
        if lasting or attempt == policy.attempts:
            break
        time.sleep(random.uniform(0.05, 0.1) * 4**attempt)  # spread, so that no crowd comes back
    return failure


def _read(uri: str, policy: SourcePolicy, clock: Clock) -> bytes:
    place = locate(uri, policy)
    if place.startswith("/"):
        return _read_local(place, uri, policy)
    if scheme_of(place) in WEB_SCHEMES:
        return read_web(place, policy, clock)
    return _read_store(place, policy, clock)


def _read_local(path: str, uri: str, policy: SourcePolicy) -> bytes:
    _check_regular(Path(path).stat().st_mode, uri)  # to open a device can already do something
    # The path had no symlink when it was checked: none may have come since, no FIFO may block.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_regular(os.fstat(file.fileno()).st_mode, uri)
        data = file.read(policy.max_bytes + 1)
    check_bytes(len(data), policy, uri)
    return data


def _check_regular(mode: int, uri: str) -> None:
    if stat.S_ISDIR(mode):
        raise ImageNotFound(f"{shown(uri)}: a folder, not an image file; name a file in it")
    if not stat.S_ISREG(mode):
        raise ImageForbidden(f"{shown(uri)}: not a regular file; copy the image to one")


def _read_store(uri: str, policy: SourcePolicy, clock: Clock) -> bytes:
    scheme, _, rest = uri.partition("://")
    fs, _ = client(f"{scheme}://{rest.partition('/')[0]}/")
    path = fs._strip_protocol(uri)
    info = call(fs, "info", path, seconds=clock.left())
    if info.get("type") == "directory":
        raise ImageNotFound(f"{shown(uri)}: a folder, not an image file; name an object in it")
    size = info.get("size")
    check_bytes(size or 0, policy, uri)
    if size == 0:
        return b""
    # The range keeps the limit also where the object has grown, or hides its size.
    end = policy.max_bytes + 1 if size is None else size
    told = store_of(uri).read()
    data: bytes = call(fs, "cat_file", path, start=0, end=end, seconds=clock.left(), **told)
    check_bytes(len(data), policy, uri)
    if size is not None and len(data) != size:
        raise StorageError(f"{shown(uri)}: {len(data)} of {size} bytes came; retry the row")
    return data


def _too_slow(uri: str, policy: SourcePolicy) -> RowTimeout:
    return RowTimeout(f"{shown(uri)}: not read within {policy.read_timeout:g} s; retry the row")


def _as_row_error(error: Exception, uri: str, policy: SourcePolicy, clock: Clock) -> RowError:
    if isinstance(error, RowError) and not isinstance(error, StorageError):
        return error
    if clock.over or isinstance(error, TimeoutError):
        return _too_slow(uri, policy)
    if isinstance(error, StorageError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if number in _NOT_THERE or isinstance(error, FileNotFoundError):
        return ImageNotFound(f"{shown(uri)}: no such image; check the path")
    if isinstance(error, ImportError):
        return StorageError(f"{shown(uri)}: {error}; pip install what is missing")
    # The text of a client's error may hold a signed URL: only its kind is told.
    reason = _kinds(error)
    if number and type(error).__module__ == "builtins":  # ssl and socket have their own numbers
        reason = os.strerror(number)
    return StorageError(
        f"{shown(uri)}: cannot be read ({reason}); check the permissions and the storage, "
        "then retry the row"
    )


def _kinds(error: BaseException) -> str:
    cause = error.__cause__
    return type(error).__name__ + (f" from {type(cause).__name__}" if cause else "")
