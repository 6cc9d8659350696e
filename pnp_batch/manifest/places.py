"""Where a manifest lies: a file, a folder or a glob in, the names of its files out."""

from __future__ import annotations

import glob
import posixpath
from pathlib import Path

from pnp_batch.errors import InvalidManifest
from pnp_batch.storage import Storage, is_local

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
GLOB_CHARACTERS = "*?["


def find(uri: str) -> tuple[str, list[str]]:
    """The folder that image paths are relative to, and the names of the files below it.

    Raises `InvalidManifest` where there is none.
    """
    if any(c in uri for c in GLOB_CHARACTERS) and not (is_local(uri) and Path(uri).exists()):
        return _matching(uri)
    folder, name = posixpath.split(uri.rstrip("/"))
    if kind_of(name) and not (is_local(uri) and Path(uri).is_dir()):
        if not Storage(folder or ".").exists(name):
            raise InvalidManifest(f"{uri}: no such file", "check the path")
        return folder or ".", [name]
    if is_local(uri) and Path(uri).is_file():
        raise InvalidManifest(
            f"{uri}: unknown kind of file {_ending(name) or name!r}", "use .parquet, .csv or .jsonl"
        )
    names = [n for n in Storage(uri).files() if _is_manifest(n)]
    if not names:
        raise InvalidManifest(f"{uri}: no manifest found", "use .parquet, .csv or .jsonl files")
    return uri, names


def kind_of(name: str) -> str | None:
    """The format of a file by the ending of its name; None where it is no manifest's."""
    return FORMATS.get(_ending(name))


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _matching(pattern: str) -> tuple[str, list[str]]:
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in GLOB_CHARACTERS))
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    storage = Storage(base)
    root = storage.path("")
    found = storage.fs.glob(posixpath.join(glob.escape(root), *parts[fixed:]))
    names = sorted(n for n in (posixpath.relpath(path, root) for path in found) if _is_manifest(n))
    if not names:
        raise InvalidManifest(f"{pattern}: matches no manifest", "use .parquet, .csv or .jsonl")
    return base, names


def _is_manifest(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and kind_of(name) is not None
