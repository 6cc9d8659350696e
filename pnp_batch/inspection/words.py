"""Where each word of a prompt acts: cross-attention in, one map a word out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pnp_batch.inspection.capture import Projected
from pnp_batch.layers import ATTENDING, PER_BLOCK

BLOCKS = range(ATTENDING[0] // PER_BLOCK, 4)
# Smaller maps say too little about where; larger ones say less about what.
SMALLEST_SIDE = 8


@dataclass(frozen=True)
class WordMap:
    """One word of the prompt in one image.

    Attributes:
        tokens: how many it has.
        share: of all attention that falls on it, averaged over the image.
        peak: where most of it falls, from 0 to 1 from left and from top.
        heat: (h, w), the sum over its tokens, scaled to 0..1 by least and most.
    """

    word: str
    tokens: int
    share: float
    peak: tuple[float, float]
    heat: torch.Tensor


def word_layers(side: int) -> tuple[int, ...]:
    """The decoder layers whose cross-attention is read, for a model made for latents of this side.

    The three of the deepest block whose maps are at least 8 x 8 there: in Stable Diffusion layers
    3 to 5, of the 16 x 16 that Prompt-to-Prompt and MasaCtrl read as well.
    """
    large = (b for b in BLOCKS if side >> (BLOCKS[-1] - b) >= SMALLEST_SIDE)
    first = next(large, BLOCKS[-1]) * PER_BLOCK
    return tuple(range(first, first + PER_BLOCK))


def attention_to_text(attentions: Sequence[Projected]) -> torch.Tensor:
    """The mean of cross-attentions (over layers and timesteps) of one resolution, (n, tokens)."""
    total = sum((a.probabilities() for a in attentions[1:]), attentions[0].probabilities())
    return total / len(attentions)


def word_maps(
    attention: torch.Tensor, words: Sequence[tuple[str, tuple[int, ...]]]
) -> list[WordMap]:
    """The map of each word, from attention (n, tokens) of a square of n positions."""
    side = round(len(attention) ** 0.5)
    maps = []
    for word, tokens in words:
        heat = attention[:, list(tokens)].sum(dim=1).unflatten(0, (side, side))
        row, column = divmod(int(heat.argmax()), side)
        low, high = heat.min(), heat.max()
        maps.append(
            WordMap(
                word,
                tokens=len(tokens),
                share=float(heat.mean()),
                peak=((column + 0.5) / side, (row + 0.5) / side),
                heat=(heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny),
            )
        )
    return maps
