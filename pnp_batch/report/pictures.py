"""The pictures of a report: outputs and guidance images in, small copies beside the page out.

A copy has the name of the digest of what it was made from, so that what is there already is neither
made again nor read. What cannot be read has none, and the page says so.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from PIL import Image

from pnp_batch import methods, results, rows, source
from pnp_batch.errors import JobError, RowError
from pnp_batch.job import policy
from pnp_batch.manifest import Manifest
from pnp_batch.report.reported import Reported, Row
from pnp_batch.source import SourcePolicy
from pnp_batch.storage import Storage

THUMBS, SOURCES = "thumbs", "sources"
SIDE = 256
SMALL = 128  # shown enlarged, so that no pixel may be lost
WRITERS = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWN = re.compile(r"(images|shards)/(?!.*\.\.)[^\\\x00]+")
# One picture of a stranger is decoded at a time: at its limit it takes a gigabyte.
_decoding = threading.Lock()


class Pictures:
    """The small copies in the folder of a report.

    Args:
        folder: where the page lies.
    """

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.there = {*folder.files(THUMBS), *folder.files(SOURCES)}

    def outputs(self, output: Storage, shown: Sequence[Row]) -> None:
        """Makes the thumbnails of the rows' pictures."""
        wanted = {name: row for row in shown if (name := thumb(row))}
        missing = [(name, row) for name, row in wanted.items() if name not in self.there]
        with ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(lambda pair: self._output(output, *pair), missing))

    def _output(self, output: Storage, name: str, row: Row) -> None:
        try:
            data = results.picture(output, row)
            picture = source.decode(data, SourcePolicy(output.uri), row["output"])
        except (FileNotFoundError, JobError, RowError):
            return
        self._write(name, picture, SIDE)

    def guidance(self, told: Reported, shown: Sequence[Row]) -> dict[str, str]:
        """Makes the copies of the rows' guidance images; their names by `row_id`.

        The name is that of the thumbnail. Where `larger` names another copy, that is there too.
        """
        found: dict[str, str] = {}
        missing: list[Row] = []
        for row in shown:
            name = _guidance(row, told.config.fit, row.get("source_sha256"))
            if name in self.there:
                found[row["row_id"]] = name
            elif row["resolution"] and (row["source_sha256"] or row["status"] == "ok"):
                missing.append(row)
        if told.manifest is None or not missing:
            return found
        allowed = policy(told.config, told.manifest.base)
        linked = [row for row in missing if row["image"]]
        found |= self._made(linked, told, allowed, {})
        left = {row["row_id"]: row for row in missing if row["row_id"] not in found}
        if left:
            found |= self._embedded(left, told, told.manifest, allowed)
        return found

    def _embedded(
        self, left: Mapping[str, Row], told: Reported, read: Manifest, allowed: SourcePolicy
    ) -> dict[str, str]:
        """Copies of images whose bytes stand in the manifest, among its first rows."""
        found: dict[str, str] = {}
        seen = 0
        for table in rows.expand(read, told.config, methods.KNOWN):
            ids = table["row_id"].to_pylist()
            here = [n for n, row_id in enumerate(ids) if row_id in left]
            data = dict(zip((ids[n] for n in here), table["image_bytes"].take(here), strict=True))
            own = [left[row_id] for row_id in data]
            found |= self._made(own, told, allowed, data)
            seen += len(ids)
            if seen >= len(told.order) or len(found) == len(left):
                break
        return found

    def _made(
        self,
        shown: Iterable[Row],
        told: Reported,
        allowed: SourcePolicy,
        embedded: Mapping[str, pa.Scalar],
    ) -> dict[str, str]:
        """Copies of guidance images, each of them made once; of embedded ones the bytes by row."""
        images: dict[Any, list[Row]] = {}
        for row in shown:
            images.setdefault(row["source_sha256"] or row["row_id"], []).append(row)

        def made(own: Sequence[Row]) -> str | None:
            bytes_of = embedded.get(own[0]["row_id"])
            data = None if bytes_of is None else bytes_of.as_py()
            return self._image(own[0], told.config.fit, allowed, data)

        with ThreadPoolExecutor(source.READERS) as readers:
            names = list(readers.map(made, images.values()))
        every = zip(names, images.values(), strict=True)
        return {row["row_id"]: name for name, own in every if name for row in own}

    def _image(self, row: Row, fit: str, allowed: SourcePolicy, data: bytes | None) -> str | None:
        """The name of a guidance image's thumbnail; None if it is not what the row was made of."""
        if data is None and not row["image"]:
            return None  # it was generated
        try:
            data = source.read_source(row["image"], allowed) if data is None else data
            digest = hashlib.sha256(data).hexdigest()
            name = _guidance(row, fit, digest)
            if digest != (row["source_sha256"] or digest) or name is None:
                return None
            if name not in self.there:
                with _decoding:
                    image = source.decode(data, allowed)
                    image = source.prepare(image, row["resolution"], fit)
                if larger(name, row["resolution"]) != name:
                    self._write(larger(name, row["resolution"]), image, max(image.size))
                self._write(name, image, SIDE)
        except (RowError, JobError):
            return None
        return name

    def _write(self, name: str, image: Image.Image, side: int) -> None:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "webp", lossless=max(small.size) <= SMALL, quality=85)
        self._folder.write(name, buffer.getvalue())
        self.there.add(name)


def thumb(row: Row) -> str | None:
    """The name of the thumbnail of a row's picture; None for a row that has none."""
    digest = row.get("sha256") or ""
    if not _DIGEST.fullmatch(digest) or not _OWN.fullmatch(row.get("output") or ""):
        return None  # a record of somebody else may name what it likes
    return f"{THUMBS}/{digest[:2]}/{digest[:40]}.webp"


def larger(name: str, side: int) -> str:
    """The name of a guidance image's copy at its working size, by that of its thumbnail."""
    return name if side <= SIDE else SOURCES + name.removeprefix(THUMBS)


def _guidance(row: Row, fit: str, digest: str | None) -> str | None:
    if not _DIGEST.fullmatch(digest or "") or not row["resolution"]:
        return None
    return f"{THUMBS}/{digest[:2]}/{digest[:40]}-{fit}{row['resolution']}.webp"  # type: ignore[index]
