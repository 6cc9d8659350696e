"""The UNet as the numerics see it: float32 latents in, float32 prediction out, whole or shallow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pnp_batch.diffusion.sites import Sites, find_sites
from pnp_batch.diffusion.stopwatch import Stopwatch
from pnp_batch.steps import Sampling


class UNet:
    """A diffusers UNet with its injection sites, which computes in its own dtype."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.sites: Sites = find_sites(module)
        self.evaluations = 0  # rows begun, guidance rows that stop early among them
        self.watch = Stopwatch(next(module.parameters()).device)

    def __call__(self, x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        """Predicts from latents (B, C, h, w) at timestep `t` and text (B, tokens, D)."""
        self.evaluations += len(x)
        with self.watch.running():
            output = self.module(self._own(x), _time(t, x), self._own(text))
            return output.sample.float()  # type: ignore[no-any-return]

    def shallow(
        self, x: torch.Tensor, t: int, text: torch.Tensor, deep: torch.Tensor
    ) -> torch.Tensor:
        """Predicts with the outermost layers alone: the first convolution, the last decoder layer.

        `deep` is what the layer before it put out for the same rows at a timestep nearby, (B, C',
        h, w) in the UNet's dtype (DeepCache: Ma et al., CVPR 2024, arXiv 2312.00858, eq. 6).
        """
        self.evaluations += len(x)
        with self.watch.running():
            return self._shallow(x, t, text, deep)

    def _shallow(
        self, x: torch.Tensor, t: int, text: torch.Tensor, deep: torch.Tensor
    ) -> torch.Tensor:
        unet, sample = self.module, self._own(x)
        emb = unet.time_embedding(unet.get_time_embed(sample, _time(t, x)))
        last = unet.up_blocks[-1]
        hidden = torch.cat([deep, unet.conv_in(sample)], dim=1)
        hidden = last.resnets[-1](hidden, emb)
        hidden = last.attentions[-1](hidden, self._own(text), return_dict=False)[0]
        output = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return output.float()  # type: ignore[no-any-return]

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.module.dtype)


class Branch:
    """The same rows from step to step, whose deep features a shallow evaluation takes over.

    Args:
        unet: the denoiser.
        sampling: tells whether there are shallow evaluations, so that features have to be kept.
    """

    def __init__(self, unet: UNet, sampling: Sampling) -> None:
        self._unet = unet
        self._reuse = sampling.reuses
        self._deep: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, t: int, text: torch.Tensor, *, whole: bool) -> torch.Tensor:
        """Evaluates the whole UNet, or its outermost layers with the latest deep features."""
        if not whole:
            assert self._deep is not None
            return self._unet.shallow(x, t, text, self._deep)
        if not self._reuse:
            return self._unet(x, t, text)
        layer = self._unet.module.up_blocks[-1].attentions[-2]
        hook = layer.register_forward_hook(self._keep)
        try:
            return self._unet(x, t, text)
        finally:
            hook.remove()

    def _keep(self, layer: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401 - a hook
        self._deep = output[0]


def _time(t: int, x: torch.Tensor) -> torch.Tensor:
    """A timestep where the latents are: filled in there, no device has to wait for it."""
    return torch.full((), t, dtype=torch.int64, device=x.device)
