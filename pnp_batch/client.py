"""The clients of object stores, each call ended by a time limit and tried once.

In: a URI. Out: its fsspec file system, one for each place and process, whose own retries are off:
those of the client library, of fsspec and of ours would multiply, so only the callers retry.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.asyn import sync
from fsspec.core import url_to_fs

# Clients raise their own kinds where the network or the credentials fail; each counts only once
# its module is loaded, so that no client is imported for a local run.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
# What the same call would meet again.
_LASTING_ERRORS = (
    ("botocore.exceptions", "NoCredentialsError"),
    ("botocore.exceptions", "PartialCredentialsError"),
    ("botocore.exceptions", "ParamValidationError"),
    ("botocore.exceptions", "NoRegionError"),
)
_S3 = ("s3://", "s3a://")
_S3_CONFIG = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 30}


def _loaded(names: tuple[tuple[str, str], ...]) -> list[type[BaseException]]:
    return [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]


def storage_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that a storage client may raise, for `except`."""
    return (OSError, *_loaded(_CLIENT_ERRORS))


def lasting_errors() -> tuple[type[BaseException], ...]:
    """Those among them that no second attempt changes."""
    kinds = (FileNotFoundError, FileExistsError, PermissionError)
    folders = (IsADirectoryError, NotADirectoryError)
    return (*kinds, *folders, *_loaded(_LASTING_ERRORS))


def is_local(uri: str) -> bool:
    """True when `uri` is a path of this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def client(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the URI's path in it.

    Raises:
        ImportError: a package for this kind of storage is missing; the message names it.
        ValueError: the URI has no known scheme.
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
    # A listing cache would hide what other processes have written meanwhile.
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith(_S3):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**_S3_CONFIG, **configured}
    fs, path = url_to_fs(uri, **options)
    fs.retries = 1  # s3fs tries five times of its own
    return fs, path


def call(
    fs: fsspec.AbstractFileSystem,
    name: str,
    *args: Any,
    seconds: float,
    **more: Any,
) -> Any:  # noqa: ANN401
    """Calls a method of a client; raises `TimeoutError` after `seconds` if it can be stopped."""
    if fs.async_impl:
        return sync(fs.loop, getattr(fs, f"_{name}"), *args, timeout=seconds, **more)
    return getattr(fs, name)(*args, **more)
