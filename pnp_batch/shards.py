"""Shards of the WebDataset format: samples in, one tar file out; and back, one file of a sample.

A sample is some files whose names differ only behind the first dot, one after another
(https://github.com/webdataset/webdataset). Equal samples give equal bytes. A shard is called by the
digest of its bytes, so that it never changes once it is there.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pnp_batch.storage import Storage, StorageUnavailable

FOLDER = "shards"
# Of shards whose contents a reader remembers; results name the rows of one after another.
REMEMBERED = 64


def packed(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[str, bytes]:
    """The name and the bytes of a shard.

    Args:
        samples: keys without a dot, and the files of each by their extension.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as shard:
        for key, files in samples:
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")  # of no time and no owner
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    return f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.tar", data


def read(storage: Storage, shard: str, member: str) -> bytes:
    """One file of a shard, without the others.

    Raises:
        FileNotFoundError: there is no such shard.
        StorageUnavailable: it has no such file, or is none.
    """
    try:
        start, size = _contents(storage.uri, storage.patience, shard)[member]
    except (KeyError, tarfile.TarError) as error:
        raise StorageUnavailable(
            f"{storage.uri}/{shard} has no {member}", "delete that file and its rows' results"
        ) from error
    return storage.read_piece(shard, start, start + size)


@lru_cache(REMEMBERED)
def _contents(uri: str, patience: float, shard: str) -> dict[str, tuple[int, int]]:
    """Where each file of a shard begins and how long it is."""
    with (
        Storage(uri, patience).open(shard) as file,
        tarfile.open(fileobj=file, mode="r:") as members,
    ):
        return {member.name: (member.offset_data, member.size) for member in members}
