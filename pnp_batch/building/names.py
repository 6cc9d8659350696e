"""Names of rows: paths of image files in, ids that are readable, unique and safe file names out."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# Of an image file.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
LONGEST = 80


class Names:
    """Gives each image of a manifest one name, whatever the others' order.

    The name is the path without its ending in ASCII. Where several paths would have one name, on a
    file system that ignores case too, each gets some digits of its path's hash.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._shared = Counter(plain(path).casefold() for path in set(paths))
        self._given: Counter[str] = Counter()

    def of(self, path: str) -> str:
        """The name of an image."""
        name = plain(path)
        if name and len(name) <= LONGEST and self._shared[name.casefold()] < 2:
            return name
        digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return f"{name[:LONGEST].rstrip('-') or 'image'}-{digest}"

    def row(self, path: str) -> str:
        """The name of the next row of an image: later ones get `--2`, which no path's name has."""
        name = self.of(path)
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name}--{self._given[name]}"


def plain(path: str) -> str:
    """A text, or an image's path without its ending, in letters, digits, `.`, `_` and single `-`.

    May be empty.
    """
    ending = next((e for e in ENDINGS if path.lower().endswith(e)), "")
    stem = path[: len(path) - len(ending)]
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._]+", "-", ascii_only).strip("-._")
