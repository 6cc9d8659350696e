"""The UNet as the numerics see it: float32 latents in, float32 prediction out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pnp_batch.diffusion.sites import Sites, find_sites


class UNet:
    """A diffusers UNet with its injection sites, which computes in its own dtype."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.sites: Sites = find_sites(module)
        self.evaluations = 0  # rows begun, guidance rows that stop early among them

    def __call__(self, x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        """Predicts from latents (B, C, h, w) at timestep `t` and text (B, tokens, D)."""
        self.evaluations += len(x)
        output = self.module(x.to(self.module.dtype), t, text.to(self.module.dtype))
        return output.sample.float()  # type: ignore[no-any-return]
