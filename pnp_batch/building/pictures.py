"""The images below a folder: its URI in, their names out, and how a manifest refers to each."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from pnp_batch.building.names import ENDINGS
from pnp_batch.building.refusal import NotBuilt, shown
from pnp_batch.errors import ImageForbidden
from pnp_batch.source.policy import SourcePolicy, locate
from pnp_batch.storage import Storage, absolute, is_local

# What every run reads, without the long look at a path that others need.
_PLAIN = re.compile(r"(?!.*\.\.)[A-Za-z0-9_./ -]{1,4096}")


class Pictures:
    """The files below a folder, and what a manifest somewhere else calls them.

    Links are followed to files inside the folder only, and never to folders: there is no way out.

    Args:
        folder: a local folder or any fsspec URI.
        base: the folder of the manifest.

    Attributes:
        left_out: links that lead out of the folder or nowhere, and what is no file.
        allow_root: what `--allow-root` must name, once a reference needs it.
    """

    def __init__(self, folder: str, base: str) -> None:
        self.storage = Storage(_without_parents(folder))
        self.left_out = 0
        self.allow_root: str | None = None
        self._base = _without_parents(base)
        if self.storage.is_local and not Path(self.storage.path("")).is_dir():
            raise NotBuilt(f"{folder}: no such folder", "check the path")

    @cached_property
    def files(self) -> list[str]:
        """The names of all files, sorted; hidden ones are left out."""
        names = [n for n in self.storage.files() if not re.search(r"(^|/)\.", n)]
        if not self.storage.is_local:
            return names
        root = Path(os.path.realpath(self.storage.path("")))
        kept = [name for name in names if _is_inside(root / name, root)]
        self.left_out = len(names) - len(kept)
        return kept

    @cached_property
    def images(self) -> list[str]:
        """The names of the images, sorted.

        Raises:
            NotBuilt: there is none.
        """
        found = [name for name in self.files if name.lower().endswith(ENDINGS)]
        if not found:
            raise NotBuilt(
                f"{self.storage.uri}: no images", f"expected files that end in {', '.join(ENDINGS)}"
            )
        return found

    def find(self, told: object, where: str, *, anywhere: bool = False) -> str:
        """The file that another file's entry names.

        Args:
            told: the path as the entry has it, below the folder.
            where: file and entry, for messages.
            anywhere: benchmarks come with folders of other names: drop the path's first folders
                and its case until a file fits.

        Raises:
            NotBuilt: it is no path, leads out of the folder, or names no file.
        """
        if not isinstance(told, str) or not told.strip():
            raise NotBuilt(f"{where}: names no image", "expected the path of an image file")
        parts = [part for part in told.split("/") if part not in ("", ".")] or [told]
        outside = ".." in re.split(r"[/\\]", told) or "://" in told or "\0" in told
        if outside or (told.startswith("/") and not anywhere):
            raise NotBuilt(
                f"{where}: {shown(told)} does not lie inside {self.storage.uri}",
                "expected a path below that folder, without '..'",
            )
        found = self._named(parts, anywhere=anywhere)
        if found is not None:
            return found
        raise NotBuilt(
            f"{where}: no image {shown(told)} below {self.storage.uri}",
            f"check --images; it holds {len(self.files)} files"
            + (f", such as {shown(self.files[0])}" if self.files else ""),
        )

    def reference(self, name: str) -> str:
        """What the manifest calls a file: a path relative to itself where it can, else all of it.

        Raises:
            NotBuilt: no run would read a file of this name.
        """
        full = posixpath.join(self.storage.uri, name)
        policy = SourcePolicy(self._base, (self.storage.uri,))
        refused = None
        for candidate in (*self._relative(full), full):
            try:
                if not _PLAIN.fullmatch(candidate):
                    locate(candidate, policy)
            except ImageForbidden as error:
                refused = error
                continue
            if self._is_outside and full.startswith(self.storage.uri):
                self.allow_root = self.storage.uri
            return candidate
        raise NotBuilt(f"{self.storage.uri}: {refused}", "rename the file") from refused

    def _named(self, parts: list[str], *, anywhere: bool) -> str | None:
        path = "/".join(parts)
        if path in self._known or not anywhere:
            return path if path in self._known else None
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        # Wild-TI2I names the folders of its authors' disk, but is published with `data`.
        for tail in (*tails, f"data/{parts[-1]}"):
            fitting = self._by_case.get(tail.casefold(), [])
            if tail in fitting or len(fitting) == 1:
                return tail if tail in fitting else fitting[0]
        return None

    @cached_property
    def _is_outside(self) -> bool:
        """Whether a run of the manifest may not read the folder without being told."""
        if not self.storage.is_local:
            return False
        real = Path(os.path.realpath(self.storage.uri))
        return not (is_local(self._base) and real.is_relative_to(os.path.realpath(self._base)))

    @cached_property
    def _known(self) -> set[str]:
        return set(self.files)

    @cached_property
    def _by_case(self) -> dict[str, list[str]]:
        names = defaultdict[str, list[str]](list)
        for name in self.files:
            names[name.casefold()].append(name)
        return names

    def _relative(self, full: str) -> list[str]:
        if is_local(full) and is_local(self._base):
            path = os.path.relpath(full, self._base)
            return [] if path.startswith("..") else [path]
        inside = full.startswith(self._base + "/")
        return [full[len(self._base) + 1 :]] if inside else []


def _without_parents(folder: str) -> str:
    """The folder from anywhere; `..` is resolved as the file system does, links and all."""
    told = absolute(folder)
    return os.path.realpath(told) if is_local(told) and ".." in told.split("/") else told


def _is_inside(path: Path, root: Path) -> bool:
    if not path.is_symlink():
        return path.is_file()
    real = Path(os.path.realpath(path))
    return real.is_file() and real.is_relative_to(root)
