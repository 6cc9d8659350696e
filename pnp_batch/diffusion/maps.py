"""Cross-attention maps: where the words of a prompt act in a picture, and masks made of them.

In: UNet evaluations, and which tokens name the subject. Out: maps, averaged over heads and layers
of one resolution (Hertz et al., arXiv 2208.01626, section 3), and masks (Cao et al., arXiv
2304.08465, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pnp_batch.diffusion.sites import transformers
from pnp_batch.errors import InvalidModel
from pnp_batch.layers import map_level

# Words that name nothing.
EMPTY_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "its", "his", "her", "their"),
        *("of", "in", "on", "at", "to", "with", "by", "from", "for", "into", "over", "under"),
        *("near", "and", "or", "is", "are", "as"),
    )
)


class _Complete(Exception):
    """Ends an evaluation once all of its maps have been read: no error."""


class CrossMaps:
    """What the cross-attention of some layers said since it was last asked.

    Args:
        side: of the maps.
        last: how many layers end the evaluation; None to let it go on.
    """

    def __init__(self, side: int, last: int | None = None) -> None:
        self.side = side
        self._last = last
        self._total: torch.Tensor | None = None
        self._layers = 0

    def add(self, probabilities: torch.Tensor) -> None:
        """Takes the attention of one layer, averaged over its heads, (B, positions, tokens)."""
        self._total = probabilities if self._total is None else self._total + probabilities
        self._layers += 1
        if self._layers == self._last:
            raise _Complete

    @property
    def met(self) -> bool:
        """Whether there was any layer since."""
        return self._total is not None

    def mean(self) -> torch.Tensor:
        """The mean over the layers met since, float32 (B, tokens, side, side).

        Raises:
            InvalidModel: no layer was met.
        """
        if self._total is None:
            raise InvalidModel(
                "no cross-attention was met: this UNet or this version of diffusers computes it in "
                "another way"
            )
        mean = (self._total / self._layers).transpose(1, 2)
        maps: torch.Tensor = mean.unflatten(2, (self.side, self.side))
        return maps

    def take(self) -> torch.Tensor:
        """`mean`; and begins anew."""
        maps = self.mean()
        self.clear()
        return maps

    def clear(self) -> None:
        """Begins anew."""
        self._total, self._layers = None, 0


@contextmanager
def recording(unet: nn.Module, latent_side: int, *, stop: bool = False) -> Iterator[CrossMaps]:
    """Reads the cross-attention of the layers whose maps are nearest to 16 x 16.

    Their processors are wrapped, not replaced: what they compute stays what it was.

    Args:
        unet: the denoiser's module.
        latent_side: of the latents it will evaluate.
        stop: end the block, and the evaluation in it, once the last of these layers is read.
    """
    parts: Any = unet
    level, side = map_level(latent_side, len(parts.down_blocks))
    wrapped = [(block.attn2, block.attn2.processor) for block in transformers(unet, level)]
    maps = CrossMaps(side, len(wrapped) if stop else None)
    try:
        for attention, own in wrapped:
            attention.set_processor(_Recording(own, maps))
        with suppress(_Complete):
            yield maps
    finally:
        for attention, own in wrapped:
            attention.set_processor(own)


class _Recording:
    """An attention processor that adds its attention to maps, and computes as another one does."""

    def __init__(self, own: Any, maps: CrossMaps) -> None:  # noqa: ANN401 - any processor
        self._own = own
        self._maps = maps

    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - diffusers' Attention
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> Any:  # noqa: ANN401
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()
            for x in (attn.to_q(hidden_states), attn.to_k(text))
        )
        self._maps.add((attn.scale * query @ key.transpose(2, 3)).softmax(dim=-1).mean(dim=1))
        return self._own(attn, hidden_states, encoder_hidden_states, *args, **more)


def subject_words(asked: str, prompt: str, other: str) -> frozenset[str]:
    """The words, in small letters, that name the subject of a picture.

    Those asked for; else those that both prompts have in common; else all of the prompt. Words
    that name nothing ("a", "of") are none.
    """
    if asked.strip():
        return frozenset(_words(asked))
    own = _words(prompt) - EMPTY_WORDS
    return frozenset((own & _words(other)) or own)


def _words(text: str) -> set[str]:
    return {word.strip(".,;:!?\"'()").lower() for word in text.split()} - {""}


def positions(
    words: frozenset[str], spans: Sequence[tuple[str, tuple[int, ...]]]
) -> tuple[int, ...]:
    """The positions in a text's embedding of the tokens of some words.

    Args:
        words: in small letters.
        spans: the words of the text with their tokens, as `StableDiffusion.words` gives them.
    """
    return tuple(p for word, tokens in spans if word.lower() in words for p in tokens)


def subject_masks(
    maps: torch.Tensor,
    tokens: Sequence[Sequence[int]],
    *,
    threshold: float,
    dilation: int = 0,
    softness: float = 0.0,
) -> torch.Tensor:
    """Masks of the subjects: maps of their tokens summed, normalised to 0..1, and thresholded.

    Args:
        maps: (B, tokens, side, side).
        tokens: of each of the B pictures the positions of its subject's tokens; where there are
            none, all of the picture is the subject.
        threshold: what belongs to the subject lies above it.
        dilation: cells by which the mask grows.
        softness: standard deviation, in cells, of the Gaussian that softens its edge.

    Returns:
        float32 (B, 1, side, side), 0 outside and 1 inside.
    """
    masks = torch.stack([_mask(one, own, threshold) for one, own in zip(maps, tokens, strict=True)])
    if dilation:
        masks = F.max_pool2d(masks, 2 * dilation + 1, stride=1, padding=dilation)
    if softness:
        masks = _blurred(masks, softness)
    return masks


def _mask(maps: torch.Tensor, tokens: Sequence[int], threshold: float) -> torch.Tensor:
    if not tokens:
        return torch.ones_like(maps[:1])
    heat = maps[list(tokens)].sum(dim=0, keepdim=True)
    low, high = heat.amin(), heat.amax()
    scaled = (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)
    return (scaled > threshold).to(maps.dtype)


def _blurred(masks: torch.Tensor, deviation: float) -> torch.Tensor:
    reach = max(1, math.ceil(3 * deviation))
    offsets = torch.arange(-reach, reach + 1, device=masks.device, dtype=masks.dtype)
    weights = torch.exp(-0.5 * (offsets / deviation) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(masks, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(across, weights.view(1, 1, -1, 1))


def fitted(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Masks (B, 1, n, n) at another side, as the features or latents have that they are to meet."""
    return F.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)
