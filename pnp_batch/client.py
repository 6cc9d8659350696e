"""The clients of object stores, each call ended by a time limit and tried once.

In: a URI. Out: its fsspec file system, one for each place and process, whose own retries are off:
those of the client library, of fsspec and of ours would multiply, so only the callers retry.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

import fsspec
from fsspec.asyn import sync
from fsspec.core import url_to_fs

from pnp_batch.stores import STORES, store_of


def storage_errors() -> tuple[type[Exception], ...]:
    """The exceptions that a storage client may raise, for `except`.

    Clients raise their own kinds where the network or the credentials fail; each counts only once
    its module is loaded, so that no client is imported for a local run.
    """
    return (OSError, *_loaded(name for store in STORES for name in store.errors))


def lasting_errors() -> tuple[type[Exception], ...]:
    """Those among them that no second attempt changes."""
    kinds = (FileNotFoundError, FileExistsError, PermissionError)
    folders = (IsADirectoryError, NotADirectoryError)
    return (*kinds, *folders, *_loaded(name for store in STORES for name in store.lasting))


def _told_by_clients() -> tuple[type[Exception], ...]:
    return (ValueError, *storage_errors())


def _loaded(names: Iterable[tuple[str, str]]) -> list[type[Exception]]:
    return [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]


def is_local(uri: str) -> bool:
    """True when `uri` is a path of this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def client(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the URI's path in it.

    Raises:
        ImportError: a package for this kind of storage is missing; the message names it.
        ValueError: the URI has no known scheme, or its client lacks an account or an address.
    """
    return _client(uri, os.getpid())


def forget() -> None:
    """Makes new clients from now on, as after a change of the environment."""
    _client.cache_clear()


@lru_cache(maxsize=64)
def _client(uri: str, _process: int) -> tuple[fsspec.AbstractFileSystem, str]:
    # One for each process: fsspec's own cache would hand a forked child its parent's connections.
    if is_local(uri):
        fs, path = url_to_fs(uri)
        return fs, path
    store = store_of(uri)
    # A listing cache would hide what other processes have written meanwhile.
    fs, path = url_to_fs(uri, use_listings_cache=False, **store.options())
    store.once(fs)
    return fs, path


def call(
    fs: fsspec.AbstractFileSystem,
    name: str,
    *args: Any,
    seconds: float,
    **more: Any,
) -> Any:  # noqa: ANN401
    """Calls a method of a client once.

    Raises:
        TimeoutError: it took longer than so many seconds; nothing waits for it any more.
        OSError, storage_errors(): as the client says it, or `PermissionError` where it was refused.
    """
    scheme = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if is_local(f"{scheme}://"):
        return getattr(fs, name)(*args, **more)
    try:
        if fs.async_impl:
            return sync(fs.loop, getattr(fs, f"_{name}"), *args, timeout=seconds, **more)
        return _in_time(partial(getattr(fs, name), *args, **more), seconds)
    except _told_by_clients() as error:
        meant = store_of(f"{scheme}://").meant(error)
        if meant is error:
            raise
        raise meant from error


def _in_time(work: Callable[[], Any], seconds: float) -> Any:  # noqa: ANN401
    """What some work returns or raises; one that hangs is left behind in its thread."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        # Whatever it is, it is raised where the answer is asked for.
        except Exception as error:  # noqa: BLE001
            answer.set_exception(error)

    threading.Thread(target=run, name="pnp-batch-call", daemon=True).start()
    return answer.result(seconds)
