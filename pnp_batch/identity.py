"""Identity: what manifest rows say in, their hashes, ids and seeds and their images' names out.

All of it follows from a row alone, or from how many rows before it say the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch.digest import Distinct
from pnp_batch.manifest import LISTED

# One encoder for all values: `json.dumps` would make one for each.
as_json = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def derived_seed(job_seed: int, row_id: str) -> int:
    """The seed of a row that names none: a hash of the job's seed and the manifest row's id."""
    digest = hashlib.sha256(f"{job_seed}/{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def row_hashes(
    chunk: pa.RecordBatch,
    quoted: list[str],
    images: list[str | None],
    embedded: list[str | None],
) -> list[str]:
    """A hash of what each row says: its JSON, the same from Parquet, CSV and JSON Lines.

    Args:
        chunk: the rows.
        quoted: their prompts, as JSON.
        images: the paths or URIs of their images.
        embedded: the SHA-256 of their embedded images.
    """
    names = [name for name in chunk.schema.names if name not in ("image", "prompt", LISTED)]
    told: dict[str, list[Any]] = {name: chunk[name].to_pylist() for name in names}
    told["image_bytes"] = embedded
    fragments = {
        name: [None if value is None else f"{as_json(name)}: {as_json(value)}" for value in values]
        for name, values in told.items()
    }
    # These two are told also when they are null.
    fragments["image"] = [f'"image": {as_json(image)}' for image in images]
    fragments["prompt"] = [f'"prompt": {prompts}' for prompts in quoted]
    rows = zip(*(fragments[name] for name in sorted(fragments)), strict=True)
    texts = ("{" + ", ".join(filter(None, row)) + "}" for row in rows)
    return [sha256(text.encode())[:32] for text in texts]


def guidance_names(
    images: list[str | None],
    embedded: list[str | None],
    seeds: list[int],
    source_prompts: list[str],
) -> Iterator[str]:
    """Names each row's guidance image together with the prompt it is inverted with."""
    columns = zip(images, embedded, seeds, source_prompts, strict=True)
    for image, digest, seed, source_prompt in columns:
        if digest is not None:
            origin = ["bytes", digest]
        elif image is not None:
            origin = ["uri", image]
        else:
            origin = ["generated", str(seed)]
        yield sha256(json.dumps([*origin, source_prompt]).encode())[:32]


class Ids:
    """Gives manifest rows their ids. Knows the rows before in eight bytes for each distinct one."""

    def __init__(self) -> None:
        self._once = Distinct()
        self._more: Counter[int] = Counter()

    def of(self, given: Sequence[str | None], hashes: Sequence[str]) -> Iterator[str]:
        """The rows' own ids, or else what they say and how often it was said before."""
        nameless = [row_hash for name, row_hash in zip(given, hashes, strict=True) if not name]
        repeats = iter(self._before(nameless))
        for name, row_hash in zip(given, hashes, strict=True):
            if name:
                yield name
            else:
                before = next(repeats)
                yield f"{row_hash[:24]}-{before}" if before else row_hash[:24]

    def _before(self, hashes: Sequence[str]) -> list[int]:
        """How often each of these hashes stood before, here and in earlier calls."""
        short = np.array([int(text[:16], 16) for text in hashes], np.uint64)
        counts, new = [0] * len(short), set[int]()
        known = self._once.has(short)
        for index, value in enumerate(short.tolist()):
            if known[index] or value in new:
                self._more[value] += 1
                counts[index] = self._more[value]
            new.add(value)
        self._once.add(short)
        return counts
