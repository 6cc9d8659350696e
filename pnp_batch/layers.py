"""Layers of a UNet by their numbers: text such as `4,7-9` in, numbers out, and back.

The decoder of a Stable Diffusion UNet has twelve layers, numbered through its four up blocks of
three each (Tumanyan et al., CVPR 2023, section 4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pnp_batch.errors import InvalidConfig

PER_BLOCK = 3
DECODER = tuple(range(12))
LAST = DECODER[-1]
# Each has a residual block, those behind the first up block have self- and cross-attention, too.
ATTENDING = DECODER[PER_BLOCK:]
# Whose features and whose self-attention are injected as published.
FEATURES, ATTENTION = DECODER[4:5], DECODER[4:]

# The side of the cross-attention maps that Prompt-to-Prompt and MasaCtrl read; models without maps
# of that side are read next to it.
MAP_SIDE = 16

_RUN = re.compile(r"\s*(\d{1,2})\s*(?:-\s*(\d{1,2})\s*)?")


def parsed(name: str, text: str, known: Sequence[int] = DECODER) -> tuple[int, ...]:
    """The layers that a text names, each once, rising.

    Args:
        name: of the parameter that has this text.
        text: numbers and ranges with commas between them.
        known: the layers that there are.

    Raises:
        InvalidConfig: it names none, or one that is not known.
    """
    runs = [_RUN.fullmatch(part) for part in text.split(",")]
    bounds = [(int(run[1]), int(run[2] or run[1])) for run in runs if run]
    found = {layer for low, high in bounds for layer in range(low, high + 1)}
    backwards = any(low > high for low, high in bounds)
    if not all(runs) or backwards or not found <= set(known):
        raise InvalidConfig(
            f"{name}: {text!r} names no decoder layers that there are",
            f"give numbers and ranges from {known[0]} to {known[-1]}, such as 4 or 4,7-9",
        )
    return tuple(sorted(found))


def map_level(latent_side: int, levels: int) -> tuple[int, int]:
    """The level of a UNet whose cross-attention maps are nearest to `MAP_SIDE`, and their side.

    Level 0 is the full resolution; the innermost of the `levels` has no cross-attention of its own.
    """
    sides = [max(1, latent_side >> level) for level in range(levels - 1)]
    level = min(range(levels - 1), key=lambda n: abs(math.log2(sides[n] / MAP_SIDE)))
    return level, sides[level]


def canonical(name: str, text: str, known: Sequence[int] = DECODER) -> str:
    """The one text for the layers that a text names. Raises as `parsed` does."""
    runs: list[list[int]] = []
    for layer in parsed(name, text, known):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
