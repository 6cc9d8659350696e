"""Prompt-to-Prompt: rows whose attention maps are their source's, edited along with the prompt.

Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or, arXiv 2208.01626, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pnp_batch.diffusion.control import Site
from pnp_batch.diffusion.maps import subject_masks
from pnp_batch.diffusion.source_branch import Beside, Layout

# Self-attention of more places than a map of 16 x 16 has is left to the target, as published.
MOST_TOKENS = 16**2
# The share of the steps before the first local blend, as in the authors' code.
BLEND_FROM = 0.2


@dataclass(frozen=True)
class Words:
    """How the maps of N rows' words are edited.

    Attributes:
        carried: of each row, as `alignment.carried` makes it, (N, tokens, tokens).
        factors: of each token of the target prompts, (N, tokens).
    """

    carried: torch.Tensor
    factors: torch.Tensor

    def edited(self, source: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Maps of the target, of the source's and its own, (N, heads, places, tokens) each."""
        carried = self.carried.to(own.dtype)[:, None]
        new = ~carried.any(dim=2, keepdim=True)
        factors = self.factors.to(own.dtype)[:, None, None]
        return (source @ carried + own * new) * factors


@dataclass(frozen=True)
class Blend:
    """Local blending: what is outside the mask of the edited words stays the source.

    Attributes:
        source, target: of each row the positions of these words' tokens in its two prompts.
        threshold, dilation, softness: of the masks, as `maps.subject_masks` takes them.
    """

    source: Sequence[Sequence[int]]
    target: Sequence[Sequence[int]]
    threshold: float
    dilation: int = 0
    softness: float = 0.0

    def mask(self, source: torch.Tensor, target: torch.Tensor, side: int) -> torch.Tensor:
        """The union of the words' masks in two maps (N, tokens, n, n): (N, 1, side, side).

        A prompt without such words adds nothing; if both have none, it is the whole picture.
        """
        masks = [self._masks(source, self.source), self._masks(target, self.target)]
        rows = zip(*masks, self.source, self.target, strict=True)
        union = [
            torch.maximum(a, b) if bool(old) == bool(new) else (a if old else b)
            for a, b, old, new in rows
        ]
        return F.interpolate(torch.stack(union), size=(side, side))

    def _masks(self, maps: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        return subject_masks(
            maps,
            tokens,
            threshold=self.threshold,
            dilation=self.dilation,
            softness=self.softness,
        )


class PromptToPrompt(Beside):
    """Cross- and self-attention of the rows' target halves, and the local blend of their latents.

    Args:
        layout: of the batch.
        words: how cross-attention is edited.
        cross_steps, self_steps: in how many of the first steps either is.
        steps: of the sampling.
        blend: None for none.
    """

    def __init__(
        self,
        layout: Layout,
        words: Words,
        steps: int,
        *,
        cross_steps: int,
        self_steps: int,
        blend: Blend | None,
    ) -> None:
        self.window = range(max(cross_steps, self_steps) if blend is None else steps)
        self.reads = blend is not None
        self._layout, self._words, self._blend = layout, words, blend
        self._lasts = {True: cross_steps, False: self_steps}
        self._blend_from = int(BLEND_FROM * steps)
        self._total: torch.Tensor | None = None

    def acts(self, site: Site) -> bool:
        """In the first steps; on self-attention where there are few places."""
        return self.index < self._lasts[site.cross] and (site.cross or site.tokens <= MOST_TOKENS)

    def attend(
        self, site: Site, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Target halves attend as their sources do: in self-attention just so."""
        if not site.cross:
            route = self._layout.route(negative=False)
            query, key = query.index_select(0, route), key.index_select(0, route)
            return F.scaled_dot_product_attention(query, key, value)
        maps = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        rows = len(self._layout.owner)
        source = maps.index_select(0, self._layout.source)
        edited = self._words.edited(source, maps[-rows:])
        return torch.cat([maps[:-rows], edited]) @ value

    def finished(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Blends the latents, by masks of the maps of all steps so far."""
        if self._blend is None or self.maps is None:
            return x
        maps = self.maps.mean()
        self._total = maps if self._total is None else self._total + maps
        if self.index < self._blend_from:
            return x
        of_source = self._total.index_select(0, self._layout.source)
        mask = self._blend.mask(of_source, self._total[-len(x) :], x.shape[-1])
        return source + mask * (x - source)
