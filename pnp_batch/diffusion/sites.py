"""Where Plug-and-Play reads and writes in a UNet: features and self-attention of decoder layers.

In: a diffusers UNet of the Stable Diffusion 1.x or 2.x layout, and the layers' numbers, by default
those of Tumanyan et al., section 4. Out: `Sites`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import FusedAttnProcessor2_0
from torch import nn

from pnp_batch.errors import InvalidModel
from pnp_batch.layers import ATTENTION, FEATURES, LAST, PER_BLOCK


@dataclass(frozen=True)
class Sites:
    """The modules of one UNet that injection touches.

    Attributes:
        features: the residual blocks (diffusers' ResnetBlock2D) whose residual branches carry the
            features.
        attention: the self-attention modules (Attention) whose queries and keys are shared.
        outermost: those of both in the last decoder layer, the only ones that a shallow evaluation
            meets.
    """

    features: tuple[Any, ...]
    attention: tuple[Any, ...]
    outermost: frozenset[Any]


def find_sites(
    unet: nn.Module, features: Sequence[int] = FEATURES, attention: Sequence[int] = ATTENTION
) -> Sites:
    """Resolves the sites in some decoder layers from the UNet's structure.

    Raises:
        InvalidModel: the UNet lacks a site; the message names the layer.
    """
    blocks = {layer: residual_block(unet, layer) for layer in features}
    attentions = {layer: _self_attention(unet, layer) for layer in attention}
    return Sites(
        features=tuple(blocks.values()),
        attention=tuple(attentions.values()),
        outermost=frozenset(found[LAST] for found in (blocks, attentions) if LAST in found),
    )


def residual_block(unet: nn.Module, layer: int) -> Any:  # noqa: ANN401 - diffusers' ResnetBlock2D
    """The residual block of a decoder layer. Raises `InvalidModel` where there is none."""
    return _layer(unet, "resnets", layer)


def transformer_block(unet: nn.Module, layer: int) -> Any:  # noqa: ANN401 - BasicTransformerBlock
    """The self- and cross-attention of a decoder layer, `attn1` and `attn2`; layer 3 has it, too.

    Raises `InvalidModel` where there is none.
    """
    transformer: Any = _layer(unet, "attentions", layer)
    blocks: Any = getattr(transformer, "transformer_blocks", ())
    if not len(blocks):
        raise InvalidModel(
            f"the attention of decoder layer {layer} is no transformer: it has no self-attention "
            "that Plug-and-Play could inject",
            "use a Stable Diffusion 1.x or 2.x model",
        )
    return blocks[0]


def transformers(unet: nn.Module, level: int | None = None) -> tuple[Any, ...]:
    """The transformer blocks of a UNet in the order of an evaluation: of SD 1.x and 2.x sixteen.

    Six on the way down, one in the middle, nine on the way up, as MasaCtrl numbers them.

    Args:
        unet: of that layout.
        level: only those of one resolution, 0 the full one; the middle has none of its own.

    Raises:
        InvalidModel: it has none.
    """
    parts: Any = unet
    down = list(enumerate(parts.down_blocks))
    up = list(enumerate(parts.up_blocks))
    found = [
        (own, attention.transformer_blocks[0])
        for own, block in [
            *down,
            (-1, parts.mid_block),
            *((len(up) - 1 - number, block) for number, block in up),
        ]
        for attention in getattr(block, "attentions", None) or ()
        if hasattr(attention, "transformer_blocks")
    ]
    blocks = tuple(block for own, block in found if level is None or own == level)
    if not blocks:
        raise InvalidModel(
            "the UNet has no cross-attention to read", "use a Stable Diffusion 1.x or 2.x model"
        )
    return blocks


def _layer(unet: nn.Module, kind: str, layer: int) -> nn.Module:
    block, index = divmod(layer, PER_BLOCK)
    blocks: Any = getattr(unet, "up_blocks", ())
    layers: Any = getattr(blocks[block], kind, ()) if block < len(blocks) else ()
    if index >= len(layers):
        raise InvalidModel(
            f"the UNet has no up_blocks[{block}].{kind}[{index}] (decoder layer {layer}), "
            "which Plug-and-Play injects into",
            "use a Stable Diffusion 1.x or 2.x model",
        )
    found: nn.Module = layers[index]
    return found


def _self_attention(unet: nn.Module, layer: int) -> nn.Module:
    attention: Any = transformer_block(unet, layer).attn1
    if isinstance(attention.processor, FusedAttnProcessor2_0):
        raise InvalidModel(
            f"decoder layer {layer} has fused q, k, v projections, which hide its queries and keys",
            "call unet.unfuse_qkv_projections() first",
        )
    return attention  # type: ignore[no-any-return]
