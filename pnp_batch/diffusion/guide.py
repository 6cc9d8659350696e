"""The guide of DiffuseIT (Kwon & Ye, arXiv 2209.15264): its losses, and the sampler that it leads.

In: latents on their way, and predictions of x0. Out: losses (B,), and latents x0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from pnp_batch.diffusion.critic import critic, cut_outs
from pnp_batch.diffusion.losses import beyond, contrast, goal, gradient, structure
from pnp_batch.diffusion.schedule import Schedule, ancestral, move, predicted
from pnp_batch.diffusion.unet import UNet
from pnp_batch.models import StableDiffusion

CONTRAST, CLASS_TOKEN, RANGE = 200.0, 100.0, 200.0
SMALLEST_VIEW = 0.9  # share of the side; published: of 0.8 to 1 of the area


class Guide:
    """What leads B rows: to their texts, in the shape of their guidance images.

    Args:
        model: decodes.
        x0: latents of the guidance images, (B, C, h, w).
        texts: target and source prompts of the rows.
        dice: of each row what its views and noise are drawn with.
        parameters: `clip`, `cutouts`, `clip_weight`, `structure_weight`.
    """

    def __init__(
        self,
        model: StableDiffusion,
        x0: torch.Tensor,
        texts: tuple[Sequence[str], Sequence[str]],
        dice: Sequence[torch.Generator],
        parameters: Mapping[str, Any],
    ) -> None:
        self._model, self.dice, self._parameters = model, dice, parameters
        self._critic = critic(parameters["clip"], model)
        with torch.no_grad():
            image = model.pixels(x0)
            self._target = F.normalize(goal(self._critic, image, *texts), dim=-1)
            self._keys, hidden = self._critic.keys_and_hidden(image)
        self._last_token = _class_token(hidden)

    def loss(self, x: torch.Tensor, x0: torch.Tensor, level: float, *, early: bool) -> torch.Tensor:
        """The losses of latents `x` at noise level `level`, whose x0 is predicted (eq. 12).

        CLIP and its keys see a mixture of both, less of `x` the noisier it is. In early steps the
        class token is to move away from that of the step before.
        """
        share = (1 - level) ** 0.5
        image = self._model.pixels(share * x0 + (1 - share) * x)
        views = cut_outs(
            image,
            self._critic.side,
            self.dice,
            self._parameters["cutouts"],
            smallest=SMALLEST_VIEW,
        )
        seen = self._critic.images(views).unflatten(0, (len(x), -1))
        told = -(seen * self._target[:, None]).sum(-1).mean(1)
        keys, hidden = self._critic.keys_and_hidden(image)
        token, before = _class_token(hidden), self._last_token
        self._last_token = token.detach()
        total: torch.Tensor = (
            self._parameters["clip_weight"] * told
            + self._parameters["structure_weight"] * structure(keys, self._keys)
            + CONTRAST * contrast(keys, self._keys)
            + RANGE * beyond(image)
        )
        if early:
            total = total - CLASS_TOKEN * (token - before).square().mean(1)
        return total


def led(
    unet: UNet,
    x: torch.Tensor,
    text: torch.Tensor,
    schedule: Schedule,
    guide: Guide,
    repeats: Sequence[int],
) -> torch.Tensor:
    """Ancestral sampling (Ho et al., arXiv 2006.11239, eq. 6, 7), its mean moved by the guide.

    Args:
        unet: the denoiser.
        x: latents (B, C, h, w) at the first of the last `len(repeats)` timesteps.
        text: embeddings (B, tokens, D).
        schedule: the sampling schedule.
        guide: its loss leads.
        repeats: how often each step is taken; between them its noise is put back.

    Returns:
        The latents x0, (B, C, h, w).
    """
    first = schedule.steps - len(repeats)
    for index, times in enumerate(repeats, first):
        for left in reversed(range(times)):
            x = _step(unet, x, text, schedule, index, guide)
            if left:
                kept = schedule.level(schedule.timesteps[index])
                kept /= schedule.level(schedule.below(index))
                x = move(x, _noise(guide, x), kept)
    return x


def _step(
    unet: UNet, x: torch.Tensor, text: torch.Tensor, schedule: Schedule, index: int, guide: Guide
) -> torch.Tensor:
    t, s = schedule.timesteps[index], schedule.below(index)
    level, below = schedule.level(t), schedule.level(s)
    found: list[torch.Tensor] = []

    def loss(at: torch.Tensor) -> torch.Tensor:
        x0, eps = predicted(unet(at, t, text), at, level, schedule.prediction)
        found[:] = x0.detach(), eps.detach()
        return guide.loss(at, x0, level, early=index < schedule.steps // 2)

    slope = gradient(loss, x)
    x0, eps = found
    mean, variance = ancestral(x0, eps, level, below)
    mean = mean - variance * slope
    return mean if s is None else mean + variance**0.5 * _noise(guide, x)


def _noise(guide: Guide, x: torch.Tensor) -> torch.Tensor:
    drawn = [torch.randn(x.shape[1:], generator=own) for own in guide.dice]
    return torch.stack(drawn).to(x.device)


def _class_token(hidden: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Of the last layer, with mean 0 and variance 1: (B, width)."""
    last = hidden[-1][:, 0]
    return F.layer_norm(last, last.shape[1:])
