"""What one UNet evaluation computes inside: hooks read it, and are removed whatever happens.

In: a UNet, one image's latents at a timestep, a text, and the decoder layers wanted. Out:
`Captured`, in float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pnp_batch.diffusion.sites import residual_block, transformer_block
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidModel


@dataclass(frozen=True)
class Projected:
    """An attention's queries (heads, n, d) and keys (heads, m, d), and what scales their product.

    Small where their probabilities are large: these are computed only when asked for.
    """

    query: torch.Tensor
    key: torch.Tensor
    scale: float

    def probabilities(self) -> torch.Tensor:
        """softmax(scale q k^T), the mean over the heads: (n, m), each row of sum 1."""
        total = torch.zeros(self.query.shape[1], self.key.shape[1])
        for query, key in zip(self.query, self.key, strict=True):
            total += (self.scale * query @ key.T).softmax(dim=-1)
        return total / len(self.query)


@dataclass(frozen=True)
class Captured:
    """What was read, by decoder layer.

    Attributes:
        features: the residual branch's output (C, h, w), which Plug-and-Play injects at layer 4.
        self_attention, cross_attention: of the layer's transformer.
    """

    features: dict[int, torch.Tensor]
    self_attention: dict[int, Projected]
    cross_attention: dict[int, Projected]


@dataclass(frozen=True)
class Layers:
    """The decoder layers to read each kind from."""

    features: tuple[int, ...]
    self_attention: tuple[int, ...]
    cross_attention: tuple[int, ...] = ()


@torch.inference_mode()
def capture(unet: UNet, x: torch.Tensor, t: int, text: torch.Tensor, layers: Layers) -> Captured:
    """Evaluates the UNet once and reads what its layers compute.

    Args:
        unet: the denoiser; it is left as it was.
        x: the latents of one image, (1, C, h, w).
        t: the timestep.
        text: embeddings of the prompt, (1, tokens, D).
        layers: where to read.

    Raises:
        InvalidModel: a layer is missing, was not met, or gave values that are not finite.
    """
    blocks = {layer: residual_block(unet.module, layer) for layer in layers.features}
    attentions = {
        (kind, layer): getattr(transformer_block(unet.module, layer), kind)
        for kind, wanted in (("attn1", layers.self_attention), ("attn2", layers.cross_attention))
        for layer in wanted
    }
    kept: dict[nn.Module, torch.Tensor] = {}
    with ExitStack() as stack:
        for module in _read(blocks.values(), attentions.values()):
            stack.callback(module.register_forward_hook(_keep(kept)).remove)
        unet(x, t, text)
    _check(kept, _read(blocks.values(), attentions.values()))
    projected = {key: _projected(module, kept) for key, module in attentions.items()}
    return Captured(
        features={layer: kept[block.conv2] for layer, block in blocks.items()},
        self_attention={layer: projected["attn1", layer] for layer in layers.self_attention},
        cross_attention={layer: projected["attn2", layer] for layer in layers.cross_attention},
    )


def _read(blocks: Iterable[Any], attentions: Iterable[Any]) -> list[nn.Module]:
    """The modules whose outputs are read."""
    return [b.conv2 for b in blocks] + [p for a in attentions for p in (a.to_q, a.to_k)]


def _keep(kept: dict[nn.Module, torch.Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:  # noqa: ANN401
        kept[module] = output[0].float().cpu()

    return hook


def _check(kept: dict[nn.Module, torch.Tensor], wanted: list[nn.Module]) -> None:
    if not kept.keys() >= set(wanted):
        raise InvalidModel(
            "a layer was not met: this UNet or this version of diffusers computes it in another way"
        )
    if not all(bool(torch.isfinite(value).all()) for value in kept.values()):
        raise InvalidModel(
            "the UNet computes values that are not finite", "try --dtype float32 or bfloat16"
        )


def _projected(attention: Any, kept: dict[nn.Module, torch.Tensor]) -> Projected:  # noqa: ANN401
    query, key = (
        kept[projection].unflatten(-1, (attention.heads, -1)).transpose(0, 1)
        for projection in (attention.to_q, attention.to_k)
    )
    return Projected(query, key, float(attention.scale))
