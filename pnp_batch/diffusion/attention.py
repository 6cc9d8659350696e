"""Shared self-attention: one set of probabilities for all rows that follow one guidance image.

Injected queries and keys are the same for every row of a guidance image, and so are the attention
probabilities they give. Laying the rows' values side by side, one attention computes all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

# On a CPU, probabilities for values of another width than the keys are held in memory as a whole:
# beyond this, computing them for each row is the better way.
MOST_PROBABILITY_BYTES = 2**28
# On CUDA, values wider than this side by side leave the fast kernels (measured on an H100).
MOST_VALUE_WIDTH = 160

Shared = Callable[[Attention], tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]


class SharedAttention:
    """An attention processor that takes queries and keys from guidance rows where it is told to.

    Args:
        own: the processor, of any kind, whose place it takes, and which it calls otherwise.
        shared: gives queries and keys (G, tokens, width) of the guidance rows and, for each of
            them, which rows follow it, int64 (G, S); None to compute as usual.
        rows: S.
    """

    def __init__(self, own: Any, shared: Shared, rows: int) -> None:  # noqa: ANN401
        self.own = own
        self._shared = shared
        self._rows = rows

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        *args: Any,
        **more: Any,
    ) -> Any:  # noqa: ANN401
        """As diffusers' `AttnProcessor2_0`, for self-attention."""
        shared = self._shared(attn) if self._fits(attn, hidden_states) else None
        if shared is None:
            return self.own(attn, hidden_states, *args, **more)
        query, key, groups = shared
        value = attn.to_v(hidden_states)[groups].unflatten(-1, (attn.heads, -1))
        side_by_side = value.permute(0, 3, 2, 1, 4).flatten(3)  # (G, heads, tokens, S x d)
        q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key))
        mixed = F.scaled_dot_product_attention(q, k, side_by_side)
        rows = mixed.unflatten(-1, (groups.shape[1], -1)).permute(0, 3, 2, 1, 4).flatten(3)
        place = groups.flatten().argsort()
        output = attn.to_out[0](rows.flatten(0, 1).index_select(0, place))
        return attn.to_out[1](output)

    def _fits(self, attn: Attention, hidden_states: torch.Tensor) -> bool:
        if hidden_states.device.type != "cpu":
            width: int = attn.to_v.out_features // attn.heads
            return self._rows * width <= MOST_VALUE_WIDTH
        rows, tokens = hidden_states.shape[:2]
        held = int(rows * attn.heads * tokens**2 * hidden_states.element_size())
        return held <= MOST_PROBABILITY_BYTES


def is_plain(attn: Attention) -> bool:
    """Whether a self-attention is nothing but projections, softmax and projection back.

    As in Stable Diffusion 1.x and 2.x with diffusers' own processors; any other processor is left
    to compute in its own way.
    """
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k)
    plain = type(attn.processor) in (AttnProcessor, AttnProcessor2_0)
    unscaled = not attn.residual_connection and attn.rescale_output_factor == 1 and attn.scale_qk
    return plain and unscaled and all(extra is None for extra in extras)
