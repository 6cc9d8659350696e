"""The comparison sheet: outputs of one manifest in, one picture out, a line for each row.

Tumanyan et al., CVPR 2023, figure 4: the guidance image with its text, then what each method made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pnp_batch import manifest
from pnp_batch.digest import digests
from pnp_batch.errors import JobError, RowError
from pnp_batch.job import policy
from pnp_batch.report.gallery import COLUMNS, first, guidance
from pnp_batch.report.reported import Reported
from pnp_batch.report.sheet import Drawn, draw_sheet, opened, save
from pnp_batch.storage import Storage

NAME = "comparison.png"
LINES = 8


def write_grid(outputs: Sequence[Reported], place: Storage) -> str | None:
    """Draws what outputs made of some rows of their manifest, evenly chosen among its first ones.

    Args:
        outputs: of one manifest.
        place: where the picture goes.

    Returns:
        Where it lies; None if there is nothing to draw.
    """
    config = outputs[0].config
    try:
        read = manifest.read(config.manifest)
        asked = first(read, config)
    except JobError:
        return None  # the manifest has gone; the page says so
    made = [_recorded(one, digests(asked["row_id"])) for one in outputs]
    chosen = _chosen([sum(name in own for own in made) for name in asked["row_id"].to_pylist()])
    if not chosen:
        return None
    allowed = policy(config, read.base)
    drawn = []
    for row in asked.take(chosen).to_pylist():
        found = [own.get(row["row_id"]) for own in made]
        side = next(one["resolution"] for one in found if one)
        pictures = tuple(_picture(*pair) for pair in zip(outputs, found, strict=True))
        source = guidance(row, side, config.fit, allowed)
        drawn.append(Drawn(source, pictures, row["prompt"] or ""))
    heads = [one.name.replace(":", " ") for one in outputs]
    return save(draw_sheet(drawn, heads, columns=1), place, NAME)


def _chosen(counts: Sequence[int]) -> list[int]:
    """Of rows, by how many outputs have a picture of each, evenly some of those that most have."""
    usable = [n for n, count in enumerate(counts) if count == max(counts) and count]
    places = np.linspace(0, len(usable) - 1, min(LINES, len(usable))).round().astype(int)
    return [usable[place] for place in places]


def _recorded(one: Reported, ids: np.ndarray) -> dict[str, Mapping[str, Any]]:
    """The rows of these ids that have a picture."""
    found = one.recorded.rows(one.recorded.entries(ids), COLUMNS)
    return {row["row_id"]: row for row in found if row["output"]}


def _picture(one: Reported, row: Mapping[str, Any] | None) -> tuple[str, Image.Image | None]:
    if row is None:
        return "no picture", None
    try:
        return "", opened(one.storage, row)
    except (FileNotFoundError, JobError, RowError, OSError):
        return "picture missing", None
