"""Files at a root, local or in an object store, written whole and read whole or in pieces.

In: a folder or any fsspec URI. Out: `Storage`, whose writes are atomic: a reader sees the old
bytes or the new ones. An exception inside an open remote file would publish what was written so
far, so nothing here ever streams into the target.

This is the only layer that tries a call of the output or the cache again: with growing pauses
until `patience` is spent. That is safe, as every call may be repeated: equal names mean equal
bytes, and `create` finds out whose bytes are there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import posixpath
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from pnp_batch import atomic
from pnp_batch.client import call, client, is_local, lasting_errors, storage_errors
from pnp_batch.errors import JobError
from pnp_batch.stores import Store, store_of

# For who only looks; a run has its own, longer one.
PATIENCE = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
# What one call may take: a server that never answers, and the slowest link worth using.
CALL_SECONDS, BYTES_A_SECOND = 30.0, 250_000
# Of a file that is read in pieces.
PIECE = 4 * 2**20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")

__all__ = ["Storage", "StorageUnavailable", "absolute", "is_local"]


class StorageUnavailable(JobError):
    """The storage of the output, the cache or the manifest cannot be used."""


def absolute(uri: str) -> str:
    """A URI that means the same from any working directory; local paths become absolute."""
    if not is_local(uri):
        return uri.rstrip("/") if not uri.endswith("://") else uri
    return str(Path(uri.split("://", 1)[-1]).expanduser().absolute())


class Storage:
    """Whole files under one root, named by relative POSIX paths. Cheap to make and to pickle.

    Args:
        uri: the root.
        patience: how long a call that fails is tried again, in seconds.
    """

    def __init__(self, uri: str, patience: float = PATIENCE) -> None:
        self.uri = absolute(uri)
        self.patience = patience

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """True when the root is a folder of this machine."""
        return is_local(self.uri)

    @property
    def store(self) -> Store:
        """The kind of object store that it is, if it is none of this machine's folders."""
        return store_of(self.uri)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system; one instance per process and root."""
        return self._client()[0]

    @property
    def place(self) -> str:
        """What people call it, with the endpoint that is asked; without secrets.

        Raises:
            StorageUnavailable: there is no client for it.
        """
        if self.is_local:
            return "a folder of this machine"
        try:
            told = self.store.place(self.fs)
        except storage_errors() as error:
            raise self._unavailable("reach", "", error) from error
        return f"{self.store.name} at {told}" if told else self.store.name

    def path(self, name: str) -> str:
        """The file system's own path of a file under the root."""
        root = self._client()[1]
        return posixpath.join(root, name) if name else root

    def _client(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            return client(self.uri)
        except (ImportError, ValueError) as error:
            raise StorageUnavailable(
                f"{self.uri}: {' '.join(str(error).split())}",
                "check the URI and the environment (docs/storage.md); install what is missing",
            ) from error
        except storage_errors() as error:
            raise self._unavailable("reach", "", error) from error

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError`, `StorageUnavailable`."""
        data: bytes = self._tried("read", name, lambda: self._get(name))
        return data

    def read_if_there(self, name: str) -> bytes | None:
        """The bytes of a file, or None."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        """A file to be read in pieces, each tried again as `read` is. Raises as `read` does."""
        if self.is_local:
            return self._tried("read", name, lambda: Path(self.path(name)).open("rb"))
        return io.BufferedReader(_Pieces(self, name), PIECE)

    def read_piece(self, name: str, start: int, end: int) -> bytes:
        """Some bytes of a file. Raises as `read` does."""
        data: bytes = self._tried("read", name, lambda: self._get(name, start=start, end=end))
        return data

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole or not at all, replacing what is there."""
        if self.is_local:
            self._tried("write", name, lambda: atomic.write(Path(self.path(name)), data))
        else:
            self._tried("write", name, lambda: self._put(name, data))

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless another one is there; False if so.

        Decided by the store where it can, so that of two writers one wins. An answer that was lost
        on the way is found out by reading back: our own bytes are a success.
        """
        made: bool = self._tried("write", name, lambda: self._create(name, data))
        return made

    def exists(self, name: str) -> bool:
        """True when the file is there now."""
        return self._info(name) is not None

    def size(self, name: str) -> int:
        """Bytes of a file. Raises `FileNotFoundError`."""
        info = self._info(name)
        if info is None:
            raise FileNotFoundError(posixpath.join(self.uri, name))
        return int(info.get("size") or 0)

    def is_empty(self) -> bool:
        """True when nothing is below the root; tells without a look at all of it."""

        def look() -> bool:
            try:
                return not self._call("ls", "", detail=False)
            except FileNotFoundError:
                return True

        empty: bool = self._tried("list", "", look)
        return empty

    def files(self, folder: str = "") -> list[str]:
        """Relative names of all files below a folder, sorted; none when it does not exist."""
        return [name for name in self.listing(folder) if not atomic.is_temporary(name)]

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of all files below a folder by their relative names."""
        found = self._found(folder)
        return {n: int(i["size"] or 0) for n, i in found.items() if not atomic.is_temporary(n)}

    def listing(self, folder: str = "") -> dict[str, datetime]:
        """All files below a folder, temporary ones too, and when each was last written."""
        return {name: _written_at(info) for name, info in self._found(folder).items()}

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the store says of each file below a folder, by its relative name, sorted."""
        root = self.path("")

        def find() -> dict[str, Any]:
            with contextlib.suppress(FileNotFoundError):
                found: dict[str, Any] = self._call("find", folder, detail=True)
                return found
            return {}

        found = self._tried("list", folder, find)
        return {posixpath.relpath(p, root): found[p] for p in sorted(found)}

    def delete(self, name: str) -> None:
        """Removes a file; one that is gone already is fine."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._call("rm_file", name)

        self._tried("delete", name, remove)

    def sweep(self) -> None:
        """Removes the temporary files that killed writers have left; stores have none."""
        if self.is_local:
            atomic.sweep(Path(self.path("")))

    def _info(self, name: str) -> dict[str, Any] | None:
        # Not fsspec's `exists`: it takes every failure for an absence.
        try:
            found: dict[str, Any] = self._tried("look for", name, lambda: self._call("info", name))
        except FileNotFoundError:
            return None
        return found

    def _call(self, method: str, name: str, *args: Any, size: int = 0, **more: Any) -> Any:  # noqa: ANN401
        seconds = CALL_SECONDS + size / BYTES_A_SECOND
        return call(self.fs, method, self.path(name), *args, seconds=seconds, **more)

    def _tried(self, verb: str, name: str, work: Callable[[], T]) -> T:
        """Does one idempotent piece of work, again and again until `patience` is spent."""
        ends, pause, attempts = time.monotonic() + self.patience, FIRST_PAUSE, 0
        while True:
            attempts += 1
            try:
                return work()
            except storage_errors() as error:
                if isinstance(error, FileNotFoundError) and verb != "write":
                    raise  # where it is written to, it is the bucket that does not exist
                lasting = self.is_local or isinstance(error, lasting_errors())
                # A call that hangs may take longer than the patience of who only looks.
                over = attempts > 1 and time.monotonic() + pause > ends
                if lasting or over:
                    raise self._unavailable(verb, name, error) from error
            time.sleep(random.uniform(0.5, 1.0) * pause)  # spread, so that no crowd comes back
            pause = min(2 * pause, LONGEST_PAUSE)

    def _unavailable(self, verb: str, name: str, error: BaseException) -> StorageUnavailable:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        hint = "check the path, the credentials and the endpoint, then run the same command again"
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            hint = "make room there, then run the same command again: it goes on where it was"
        return StorageUnavailable(f"cannot {verb} {posixpath.join(self.uri, name)}: {reason}", hint)

    def _get(self, name: str, **more: int) -> Any:  # noqa: ANN401 - what a client answers
        return self._call("cat_file", name, **more, **self.store.read())

    def _put(self, name: str, data: bytes, **more: Any) -> None:
        told = {**self.store.write(data), **more}
        self._call("pipe_file", name, data, size=len(data), **told)

    def _create(self, name: str, data: bytes) -> bool:
        try:
            if self.is_local:
                atomic.write(Path(self.path(name)), data, replace=False)
            else:
                self._put(name, data, **self.store.create())
        except storage_errors():
            there = self.read_if_there(name)
            if there is None:
                raise
            return there == data
        return True


class _Pieces(io.RawIOBase):
    """A remote file as Python's own buffered reader wants it."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._size, self._at = storage.size(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readall(self) -> bytes:
        # Python's own asks for a few kB at a time.
        return b"".join(iter(lambda: self.read(PIECE), b""))

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - anything with a buffer
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._storage.read_piece(self._name, self._at, end)
        if len(data) != end - self._at:
            raise OSError(f"{self._storage.uri}/{self._name} became shorter while it was read")
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def _written_at(info: dict[str, Any]) -> datetime:
    """When a file was last written, as its store says; the epoch where it does not say."""
    told = next(
        (info[k] for k in ("LastModified", "mtime", "updated", "last_modified") if k in info), 0
    )
    if isinstance(told, str):
        told = datetime.fromisoformat(told)
    if not isinstance(told, datetime):
        return datetime.fromtimestamp(told, UTC)
    return told if told.tzinfo else told.replace(tzinfo=UTC)
