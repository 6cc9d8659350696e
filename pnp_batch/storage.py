"""Files at a root, local or in an object store, read whole and written whole.

In: a folder or any fsspec URI. Out: `Storage`, whose writes are atomic: a reader sees the old
bytes or the new ones. An exception inside an open remote file would publish what was written so
far, so nothing here ever streams into the target.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from pnp_batch.errors import JobError

# Clients raise their own kinds where the network or the credentials fail; each counts only once
# its module is loaded, so that no client is imported for a local run.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)


class StorageUnavailable(JobError):
    """The storage of the output, the cache or the manifest cannot be used."""


def storage_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that a storage client may raise, for `except`."""
    loaded = [
        getattr(sys.modules[module], name)
        for module, name in _CLIENT_ERRORS
        if module in sys.modules
    ]
    return (OSError, *loaded)


def is_local(uri: str) -> bool:
    """True when `uri` is a path of this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """A URI that means the same from any working directory; local paths become absolute."""
    if not is_local(uri):
        return uri.rstrip("/") if not uri.endswith("://") else uri
    return str(Path(uri.split("://", 1)[-1]).expanduser().absolute())


@lru_cache(maxsize=64)
def _open(uri: str) -> tuple[Any, str]:
    # A listing cache would hide what other processes have written meanwhile.
    options = {} if is_local(uri) else {"use_listings_cache": False}
    try:
        fs, root = url_to_fs(uri, **options)
    except (ImportError, ValueError) as error:
        raise StorageUnavailable(
            f"{uri}: {error}", "check the URI's scheme; pip install what the message names"
        ) from error
    return fs, root


class Storage:
    """Whole files under one root, named by relative POSIX paths. Cheap to make and to pickle."""

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system; one instance per process and root."""
        return _open(self.uri)[0]

    def path(self, name: str) -> str:
        """The file system's own path of a file under the root."""
        return posixpath.join(_open(self.uri)[1], name) if name else _open(self.uri)[1]

    @contextlib.contextmanager
    def _named(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except storage_errors() as error:
            if isinstance(error, FileNotFoundError) and verb != "write":
                raise  # where it is written to, it is the bucket that does not exist
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise StorageUnavailable(
                f"cannot {verb} {posixpath.join(self.uri, name)}: {reason}",
                "check the path, the credentials and the endpoint, then run the same command again",
            ) from error

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError`, `StorageUnavailable`."""
        with self._named("read", name):
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_if_there(self, name: str) -> bytes | None:
        """The bytes of a file, or None."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole or not at all, replacing what is there."""
        path = self.path(name)
        with self._named("write", name):
            if is_local(self.uri):
                _write_local(Path(path), data)
            else:
                self.fs.pipe_file(path, data)

    def exists(self, name: str) -> bool:
        """True when the file is there now."""
        with self._named("look for", name):
            return bool(self.fs.exists(self.path(name)))

    def files(self, folder: str = "") -> list[str]:
        """Relative names of all files below a folder, sorted; none when it does not exist."""
        root = self.path("")
        with self._named("list", folder):
            try:
                found = self.fs.find(self.path(folder))
            except FileNotFoundError:
                return []
        names = [posixpath.relpath(path, root) for path in found]
        return sorted(n for n in names if not posixpath.basename(n).startswith(".tmp-"))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._named("look at", name):
            return int(self.fs.size(self.path(name)) or 0)

    def delete(self, name: str) -> None:
        """Removes a file; one that is gone already is fine."""
        with self._named("delete", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))


def _write_local(path: Path, data: bytes) -> None:
    try:
        _replace(path, data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
