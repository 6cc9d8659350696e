"""Null-text inversion: trajectories in, and for each step of their way back an embedding out.

It stands where the empty prompt's does, so that sampling with classifier-free guidance follows the
trajectory (Mokady et al., CVPR 2023, arXiv 2211.09794, algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pnp_batch.diffusion.sampling import Guidance, step
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.steps import NULL_TEXT_STEPS

# As in the authors' code, which has 50 steps: the rate falls by a hundredth of it with each step
# and what is near enough grows by 2e-5. Here both go by the share of the steps.
LEARNING_RATE = 1e-2
RATE_LOST = 0.5
NEAR_ENOUGH = 1e-5
NEAR_ENOUGH_GROWTH = 1e-3


def null_text(
    unet: UNet, guidance: Guidance, empty: torch.Tensor, schedule: Schedule, scale: float
) -> torch.Tensor:
    """Optimises the unconditional embeddings of each image; gradients reach these alone.

    Each step begins with the embedding of the one before. An image that is near enough stops,
    whatever the others do; the authors' code updates it once more, which for one that is there
    already is a step along rounding errors.

    Args:
        unet: the denoiser.
        guidance: trajectories, prompts, and the latents x0 that the last step is to reach.
        empty: the embedding of the empty prompt, (tokens, D).
        schedule: the sampling schedule.
        scale: of the classifier-free guidance.

    Returns:
        float32 (steps, G, tokens, D).
    """
    # Clones, because tensors of inference mode take no part in gradients.
    text, x = guidance.text.clone(), guidance.trajectory[0].clone()
    embedding = empty.float().expand_as(text).clone()
    found = []
    for index in range(schedule.steps):
        with torch.no_grad():
            conditional = unet(x, schedule.timesteps[index], text)
        this = _Step(unet, schedule, index, x, conditional, scale)
        is_last = index + 1 == schedule.steps
        aim = (guidance.x0 if is_last else guidance.trajectory[index + 1]).clone()
        embedding = _optimised(this, embedding, aim)
        with torch.no_grad():
            x = this.reached(embedding)
        found.append(embedding)
    return torch.stack(found)


@dataclass(frozen=True)
class _Step:
    """One guided step of the images' sampling, of which only the embedding is open."""

    unet: UNet
    schedule: Schedule
    index: int
    x: torch.Tensor
    conditional: torch.Tensor
    scale: float

    def reached(self, embedding: torch.Tensor) -> torch.Tensor:
        """The latents below, (G, C, h, w)."""
        output = self.unet(self.x, self.schedule.timesteps[self.index], embedding)
        output = output + self.scale * (self.conditional - output)
        return step(output, self.x, self.schedule, self.index)


def _optimised(this: _Step, begin: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    share = this.index / this.schedule.steps
    near_enough = NEAR_ENOUGH + NEAR_ENOUGH_GROWTH * share
    embedding = begin.clone().requires_grad_()
    optimiser = torch.optim.Adam([embedding], lr=LEARNING_RATE * (1 - RATE_LOST * share))
    running = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    for _ in range(NULL_TEXT_STEPS):
        with torch.enable_grad():
            distance = (this.reached(embedding) - aim).square().mean(dim=(1, 2, 3))
        running &= distance.detach() >= near_enough
        if not running.any():
            break
        (embedding.grad,) = torch.autograd.grad(distance.sum(), embedding)
        before = embedding.detach().clone()
        optimiser.step()
        with torch.no_grad():
            embedding.copy_(torch.where(running[:, None, None], embedding, before))
    return embedding.detach()
