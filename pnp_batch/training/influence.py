"""Layer-swap influence: how much of another picture one layer's output brings in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def self_attentions(unet: nn.Module) -> list[nn.Module]:
    """The self-attention layers that Plug-and-Play injects queries and keys into (4 to 11)."""
    blocks: Any = unet.up_blocks
    sites = [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    return [blocks[b].attentions[k].transformer_blocks[0].attn1 for b, k in sites]


def layers(unet: nn.Module) -> dict[str, list[nn.Module]]:
    """The layers whose influence matters, by name; ``feature`` is what Plug-and-Play injects."""
    blocks: Any = unet.up_blocks
    mid: Any = unet.mid_block
    attention: list[Any] = list(self_attentions(unet))
    return {
        "mid": [mid],
        "feature": [blocks[1].resnets[1].conv2],
        "up1": [blocks[1].resnets[2]],
        "qk": [layer for a in attention for layer in (a.to_q, a.to_k)],
    }


def second_half(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A forward hook: both halves of the batch get the second half's output."""
    half = output.shape[0] // 2
    return torch.cat([output[half:], output[half:]])


def swapped(forward: Callable[[], Tensor], modules: list[nn.Module]) -> Tensor:
    """``forward()`` while ``modules`` give the second half's output to the first half, too."""
    handles = [module.register_forward_hook(second_half) for module in modules]
    try:
        return forward()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def influence(
    unet: nn.Module, pair: tuple[Tensor, Tensor], empty: Tensor, time: int, alpha_bar: float
) -> dict[str, float]:
    """For each of `layers` the change of the predicted x0 over the two pictures' distance.

    ``pair`` are latents of different pictures (n, c, h, w), noised alike to ``time``; ``empty``
    is the empty text's embedding (1, tokens, width). 0: the layer is dead, 1: it says everything.
    """
    half = len(pair[0])
    noise = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(0)).to(
        pair[0].device
    )
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    noisy = torch.cat([a * latents + s * noise for latents in pair])
    text = empty.expand(2 * half, -1, -1)

    def predicted() -> Tensor:
        result: Tensor = (noisy - s * unet(noisy, time, text).sample) / a
        return result

    own = predicted()
    distance = (own[half:] - own[:half]).norm()
    found = {}
    for name, modules in layers(unet).items():
        moved = swapped(predicted, modules)[:half] - own[:half]
        found[name] = float(moved.norm() / distance)
    return found
