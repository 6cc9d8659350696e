"""Mutual self-attention: rows whose queries attend to their source's keys and values.

Cao, Wang, Qi, Shan, Qie, Zheng: MasaCtrl, ICCV 2023, arXiv 2304.08465, sections 3.2 and 3.3.
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


@dataclass(frozen=True)
class Subjects:
    """What the masks show.

    Attributes:
        source, target: of each row the positions of the subject's tokens in its two prompts.
        threshold: what of the maps, in 0..1, belongs to the subject.
    """

    source: Sequence[Sequence[int]]
    target: Sequence[Sequence[int]]
    threshold: float


class MutualSelfAttention(Beside):
    """Self-attention of both halves of the rows.

    Args:
        layout: of the batch.
        window: the steps in which it acts.
        layer: from which transformer block on it does.
        subjects: for the mask-guided form, in which subject and background attend each to its
            own; None for the plain one.
    """

    def __init__(
        self, layout: Layout, window: range, layer: int, subjects: Subjects | None
    ) -> None:
        self.window = window
        self.reads = subjects is not None
        self._layout, self._layer, self._subjects = layout, layer, subjects

    def acts(self, site: Site) -> bool:
        """On self-attention, from its step and its layer on."""
        return not site.cross and self.index in self.window and site.layer >= self._layer

    def attend(
        self, site: Site, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Each half of a row attends to that of its image."""
        route = self._layout.route(negative=True)
        key, value = key.index_select(0, route), value.index_select(0, route)
        masks = self._masks(math.isqrt(site.tokens))
        if masks is None:
            return F.scaled_dot_product_attention(query, key, value)
        source, target = masks
        begin = self._layout.begin
        plain = F.scaled_dot_product_attention(query[:begin], key[:begin], value[:begin])
        query, key, value = query[begin:], key[begin:], value[begin:]
        inside = F.scaled_dot_product_attention(query, key, value, _some(source))
        outside = F.scaled_dot_product_attention(query, key, value, _some(~source))
        return torch.cat([plain, torch.where(target.transpose(2, 3), inside, outside)])

    def _masks(self, side: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where the subject is in the source and in the target, boolean (2N, 1, 1, side^2).

        From the maps of this step so far; None before there are any, as in the authors' code.
        """
        if self._subjects is None or self.maps is None or not self.maps.met:
            return None
        maps, rows = self.maps.mean(), len(self._layout.owner)
        pairs = (
            (maps.index_select(0, self._layout.source), self._subjects.source),
            (maps[-rows:], self._subjects.target),
        )
        found = []
        for own, tokens in pairs:
            masks = subject_masks(own, tokens, threshold=self._subjects.threshold)
            flat = F.interpolate(masks, size=(side, side)).flatten(2)[:, None] > 0
            found.append(torch.cat([flat, flat]))
        return found[0], found[1]


def _some(keys: torch.Tensor) -> torch.Tensor:
    """The keys that may be attended to: all where there would be none."""
    return keys | ~keys.any(dim=-1, keepdim=True)
