"""Where an output lies, a folder or a prefix of a bucket, seen without the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tests.faults.servers import Store


class Place(Protocol):
    """Files under one root."""

    def names(self, under: str = "") -> list[str]:
        """Every file's path below the root or a folder in it, hidden ones too, sorted."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError when there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file, as whoever damages an output does."""

    def delete(self, name: str) -> None:
        """Removes a file."""

    def uploads(self) -> list[str]:
        """Names of multipart uploads that were begun and neither completed nor aborted."""


class Folder:
    """A local folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def names(self, under: str = "") -> list[str]:
        """Whatever is no folder counts as a file, a dangling link as well."""
        found = (Path(at) / name for at, _, names in os.walk(self.root / under) for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def delete(self, name: str) -> None:
        """Removes a file."""
        (self.root / name).unlink()

    def uploads(self) -> list[str]:
        """A folder knows no uploads."""
        return []


class Prefix:
    """A prefix of a bucket."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.bucket, self.prefix = store.bucket, prefix.strip("/") + "/"
        self.client = store.client(attempts=5)

    def names(self, under: str = "") -> list[str]:
        """Every key below the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + under
        )
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key.removeprefix(self.prefix) for key in keys)

    def read(self, name: str) -> bytes:
        """An object's bytes; raises FileNotFoundError as a folder does."""
        try:
            asked = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
        except self.client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(name) from error
        with asked["Body"] as body:
            return bytes(body.read())

    def write(self, name: str, data: bytes) -> None:
        """Puts an object."""
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def delete(self, name: str) -> None:
        """Deletes an object."""
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def uploads(self) -> list[str]:
        """Keys of open uploads below the prefix."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket)
        keys = [item["Key"] for page in pages for item in page.get("Uploads", [])]
        mine = (key for key in keys if key.startswith(self.prefix))
        return sorted(key.removeprefix(self.prefix) for key in mine)
