"""An output in; its guidance images with what was made of each out, in their order, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image

from pnp_batch import methods, results, rows, source
from pnp_batch.config import RunConfig
from pnp_batch.digest import digests
from pnp_batch.errors import RowError
from pnp_batch.job import policy
from pnp_batch.manifest import Manifest, read
from pnp_batch.storage import Storage

LARGEST = 500
# What is read of a recorded row.
COLUMNS = ["row_id", "prompt", "output", "member", "resolution"]


@dataclass(frozen=True)
class Group:
    """One guidance image and the recorded rows of it.

    Attributes:
        image: its URI or path, None for one that was generated or has no name.
        source: as it went to work; None if it was generated or cannot be read.
        rows: `COLUMNS` of them, as the results hold them.
    """

    image: str | None
    source: Image.Image | None
    rows: list[Mapping[str, Any]] = field(default_factory=list)


def gallery(config: RunConfig, largest: int = LARGEST) -> list[Group]:
    """Collects the first rows of a job as far as they are recorded.

    Args:
        config: the job that made the output.
        largest: rows of the manifest that are looked at.
    """
    manifest = read(config.manifest)
    allowed = policy(config, manifest.base)
    asked = first(manifest, config, largest)
    there = results.recorded(Storage(config.output))
    entries = there.entries(digests(asked["row_id"]))
    recorded = {row["row_id"]: row for row in there.rows(entries, COLUMNS)}
    groups: dict[str, Group] = {}
    for row in asked.to_pylist():
        done = recorded.get(row["row_id"])
        if done is None:
            continue
        if row["guidance"] not in groups:
            picture = guidance(row, done["resolution"], config.fit, allowed)
            groups[row["guidance"]] = Group(row["image"], picture)
        groups[row["guidance"]].rows.append(done)
    return list(groups.values())


def first(manifest: Manifest, config: RunConfig, largest: int = LARGEST) -> pa.Table:
    """The first rows that a manifest asks for, as `rows.expand` makes them."""
    tables, count = [], 0
    for table in rows.expand(manifest, config, methods.KNOWN):
        tables.append(table.slice(0, largest - count))
        count += len(tables[-1])
        if count == largest:
            break
    return pa.concat_tables(tables)


def guidance(
    row: Mapping[str, Any], side: int, fit: str, allowed: source.SourcePolicy
) -> Image.Image | None:
    """The guidance image of a row, as it went to work; None if there is none to be had."""
    if row["image"] is None and row["image_bytes"] is None:
        return None
    try:
        image = source.open_image(row["image"], row["image_bytes"], allowed)
    except RowError:
        return None  # the row's own error says why
    return source.prepare(image, side, fit)
