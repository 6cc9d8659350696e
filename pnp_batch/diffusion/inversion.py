"""DDIM inversion: a latent image in, its trajectory of noisier and noisier latents out."""

from __future__ import annotations

import torch

from pnp_batch.diffusion.schedule import Schedule, move, predicted
from pnp_batch.diffusion.unet import Branch, UNet


@torch.inference_mode()
def invert(unet: UNet, x0: torch.Tensor, text: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """Runs DDIM backwards in time, without guidance (Song et al., arXiv 2010.02502, sec. 4.3).

    At each step from s up to t the UNet is evaluated at (x_s, t), as the published Plug-and-Play
    code does; its output is read at the noise level that x_s really has.

    Args:
        unet: the denoiser.
        x0: latents of the guidance images, float32 (B, C, h, w).
        text: embeddings of the inversion prompts, (B, tokens, D).
        schedule: the sampling schedule, which knows the inversion's steps, too.

    Returns:
        The latents at the sampling timesteps in sampling order, x_T first: (steps, B, C, h, w).
    """
    kept: dict[int, torch.Tensor] = {}
    x, branch = x0, Branch(unet, schedule.sampling)
    for index, (s, t) in enumerate(schedule.ascending()):
        output = branch(x, t, text, whole=schedule.sampling.is_whole(index))
        x0_hat, eps = predicted(output, x, schedule.level(s), schedule.prediction)
        x = move(x0_hat, eps, schedule.level(t))
        if t in schedule.timesteps:
            kept[t] = x
    return torch.stack([kept[t] for t in schedule.timesteps])
