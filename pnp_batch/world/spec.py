"""What a picture shows: the vocabulary, the `Spec` that fixes one picture, and random specs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

RGB = tuple[int, int, int]

OBJECTS = (
    "house",
    "tree",
    "car",
    "boat",
    "fish",
    "cat",
    "flower",
    "mushroom",
    "rocket",
    "balloon",
    "castle",
    "bird",
)
COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (243, 130, 33),
    "yellow": (248, 208, 48),
    "green": (46, 150, 62),
    "blue": (40, 96, 214),
    "purple": (132, 60, 180),
    "pink": (240, 120, 180),
    "white": (240, 240, 240),
    "black": (38, 38, 42),
}
SCENES = ("grass", "snow", "night", "sea", "sunset", "desert")
RENDITIONS = ("flat", "sketch", "oil", "neon", "pixel", "blueprint")

COLOURLESS = ("sketch", "blueprint")
"""Renditions that cannot show the object's colour; captions do not name it there."""


@dataclass(frozen=True)
class Spec:
    """One picture: equal specs draw equal pictures, in every process.

    ``size`` is half the object's extent and ``x``, ``y`` its centre, as fractions of the picture's
    side. ``seed`` fixes what is left: shape variation, the scene's details, brush strokes.
    """

    object: str
    colour: str
    scene: str
    rendition: str
    size: float
    x: float
    y: float
    flip: bool
    seed: int


def random_spec(rng: random.Random, **fixed: Any) -> Spec:
    """A spec with every attribute drawn from ``rng`` except those given in ``fixed``.

    A neon sign cannot be black, so neon pictures get one of the other colours.
    """
    drawn: dict[str, Any] = {
        "object": rng.choice(OBJECTS),
        "scene": rng.choice(SCENES),
        "rendition": rng.choice(RENDITIONS),
        "size": rng.uniform(0.29, 0.41),
        "x": rng.uniform(0.4, 0.6),
        "y": rng.uniform(0.45, 0.58),
        "flip": rng.random() < 0.5,
        "seed": rng.getrandbits(32),
    }
    unknown = set(fixed) - set(Spec.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"unknown attributes {sorted(unknown)}: a Spec has {list(Spec.__dataclass_fields__)}"
        )
    drawn.update(fixed)
    colours = [c for c in COLOURS if not (drawn["rendition"] == "neon" and c == "black")]
    colour = rng.choice(colours)
    drawn.setdefault("colour", colour)
    return Spec(**drawn)
