"""Scores of drawn pictures, read from the pixels without any network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pnp_batch.evaluation.pair import Found, NotScored, Pair
from pnp_batch.world import benchmark
from pnp_batch.world.case import case_of

NOT_DRAWN = NotScored("the row does not say what was drawn (column `world`)")
NOT_READABLE = NotScored("the true target does not show it either")
SIDE = 64  # of the pictures that the measures know


class Drawn:
    """Whether a translation shows what was asked of a drawn picture, and keeps its object.

    Colour, scene and rendition are 1 or 0, as the nearest drawing says (`world.measures`).
    """

    name = "world"
    scores = ("world_mask_iou", "world_colour", "world_scene", "world_rendition")

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, each by itself."""
        return [_score(pair) for pair in pairs]


def _score(pair: Pair) -> dict[str, Found]:
    if not pair.world:
        return dict.fromkeys(Drawn.scores, NOT_DRAWN)
    try:
        case = case_of(pair.world, pair.prompt)
    except ValueError as error:
        return dict.fromkeys(Drawn.scores, NotScored(f"column `world`: {error}"))
    picture = np.asarray(pair.output.resize((SIDE, SIDE)))
    found = benchmark.score(case, picture)
    return {name: found.get(name.removeprefix("world_"), NOT_READABLE) for name in Drawn.scores}
