"""The held-out benchmark: pictures never trained on, prompts, true targets, and a score.

In the text-driven image-to-image form of Tumanyan et al. 2023 (real images, one prompt each): a
source picture, a prompt in the captions' words, and, as the world is drawn, the true target too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from pnp_batch.world import measures
from pnp_batch.world.captions import caption
from pnp_batch.world.drawing import Drawing, draw, recast
from pnp_batch.world.spec import COLOURLESS, COLOURS, OBJECTS, RENDITIONS, SCENES, Spec, random_spec

KINDS = ("rendition", "scene", "colour", "sketch")
TEXT = ("colour", "scene", "rendition")
STRUCTURE = ("edge_correlation", "mask_iou")


@dataclass(frozen=True)
class Case:
    """One pair: the source's spec, the target's, and what kind of change lies between."""

    name: str
    kind: str
    source: Spec
    target: Spec

    @property
    def prompt(self) -> str:
        """The target's caption."""
        return caption(self.target)


@lru_cache(maxsize=256)
def drawn(spec: Spec) -> Drawing:
    """The drawing of a spec, kept for the many ways that are scored against it."""
    return draw(spec)


def cases(count: int = 64) -> list[Case]:
    """The first ``count`` pairs: every kind in turn, every object equally often."""
    return [case(k) for k in range(count)]


def case(number: int) -> Case:
    """One pair by its number; the seeds are no training picture's."""
    rng = random.Random(f"benchmark/{number}")
    kind = KINDS[number % len(KINDS)]
    source = random_spec(
        rng,
        object=OBJECTS[(number // len(KINDS) * 5 + number % len(KINDS) * 3) % len(OBJECTS)],
        rendition="sketch" if kind == "sketch" else "flat",
        size=rng.uniform(0.32, 0.4),
    )
    return Case(f"{number:03d}-{kind}-{source.object}", kind, source, changed(source, kind, rng))


def changed(source: Spec, kind: str, rng: random.Random) -> Spec:
    """The target of one kind of change."""
    if kind == "rendition":
        shown = [r for r in RENDITIONS if r != "flat" and (r, source.colour) != ("neon", "black")]
        return recast(source, rendition=rng.choice(shown))
    if kind == "scene":
        return recast(source, scene=rng.choice([s for s in SCENES if s != source.scene]))
    if kind == "colour":
        return recast(source, colour=rng.choice([c for c in COLOURS if c != source.colour]))
    return recast(source, rendition=rng.choice(("flat", "oil")))


def score(pair: Case, picture: measures.Picture) -> dict[str, float]:
    """Structure against the source, and 1 or 0 for each thing that the prompt names.

    ``picture`` is uint8 (64, 64, 3). A measure that the target does not allow is left out: a colour
    in line art, a mask that cannot be read from the true target either (a black cat at night).
    """
    source, target = drawn(pair.source), pair.target
    found = {
        "edge_correlation": measures.edge_correlation(np.asarray(source.image), picture),
        "scene": measures.read_scene(picture, source.mask, target.rendition) == target.scene,
        "rendition": measures.read_rendition(picture) == target.rendition,
    }
    if has_readable_mask(target):
        found["mask_iou"] = measures.mask_iou(measures.read_mask(picture), source.mask)
    if target.rendition not in COLOURLESS:
        seen = measures.read_colour(picture, source.mask, target.rendition)
        found["colour"] = seen == target.colour
    return {name: float(value) for name, value in found.items()}


@cache
def has_readable_mask(target: Spec) -> bool:
    """Whether the object's mask can be read from its true picture (IoU of 0.8 at least)."""
    if target.rendition not in measures.SOLID:
        return False
    drawing = drawn(target)
    return measures.mask_iou(measures.read_mask(np.asarray(drawing.image)), drawing.mask) >= 0.8


def true_targets(pairs: Sequence[Case]) -> list[Drawing]:
    """What a perfect translation would be: the same picture, drawn as the prompt says."""
    return [drawn(pair.target) for pair in pairs]
