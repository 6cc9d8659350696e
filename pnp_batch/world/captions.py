"""Words for a picture: a caption says everything that the picture shows, and nothing else."""

from __future__ import annotations

import random

from pnp_batch.world.spec import COLOURLESS, Spec

RENDITION_WORDS = {
    "flat": "a flat drawing",
    "sketch": "a pencil sketch",
    "oil": "an oil painting",
    "neon": "a neon sign",
    "pixel": "pixel art",
    "blueprint": "a blueprint",
}
SCENE_WORDS = {
    "grass": "on grass",
    "snow": "in the snow",
    "night": "at night",
    "sea": "at the sea",
    "sunset": "at sunset",
    "desert": "in the desert",
}


def article(word: str) -> str:
    """``word`` with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def subject(spec: Spec) -> str:
    """The object in words: ``a red house``, or ``a house`` where the rendition shows no colour."""
    return article(spec.object if spec.rendition in COLOURLESS else f"{spec.colour} {spec.object}")


def caption(spec: Spec) -> str:
    """The full caption, such as ``an oil painting of a red house in the snow``."""
    return f"{RENDITION_WORDS[spec.rendition]} of {subject(spec)} {SCENE_WORDS[spec.scene]}"


def loose_caption(spec: Spec, rng: random.Random) -> str:
    """A caption as people also write them: part of it left out, or the rendition named last."""
    rendition, scene = RENDITION_WORDS[spec.rendition], SCENE_WORDS[spec.scene]
    forms = [
        f"{rendition} of {subject(spec)}",
        f"{subject(spec)} {scene}",
        f"{rendition} of {article(spec.object)} {scene}",
        f"{subject(spec)} {scene}, {rendition.removeprefix('an ').removeprefix('a ')}",
        f"{subject(spec)}, {rendition.removeprefix('an ').removeprefix('a ')}",
        f"{rendition} {scene}",
    ]
    return rng.choice(forms)
