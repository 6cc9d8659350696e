"""Fine-tuning of DiffusionCLIP (Kim et al., arXiv 2110.02711): a UNet and two texts in, a copy out.

The copy brings noised pictures of the source text back as pictures of the target text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from pnp_batch.diffusion.critic import critic
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.losses import direction, shown
from pnp_batch.diffusion.sampling import SOURCE_GUIDANCE_SCALE, Prompts, noise, sample, step
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.models import StableDiffusion
from pnp_batch.steps import Sampling

WEIGHTS = 114e6  # of the published denoiser of faces, which the learning rate is meant for
GROWTH = 1.3  # of the learning rate, with each pass over the pictures


def last_steps(schedule: Schedule, steps: int) -> Schedule:
    """The last so many steps of a schedule, and as finely divided an inversion up to them."""
    parts = schedule.sampling.inversion // schedule.steps
    return replace(
        schedule,
        timesteps=schedule.timesteps[schedule.steps - steps :],
        sampling=Sampling(steps, steps * parts),
    )


def training_pictures(
    unet: UNet, model: StableDiffusion, schedule: Schedule, source: str, count: int
) -> torch.Tensor:
    """Latents x0 (count, C, h, w) of pictures of a text, from seeds that the text gives."""
    channels, side = model.latent_shape
    drawn = [noise(_seed(source, k), (channels, side, side)) for k in range(count)]
    prompts = Prompts(
        target=model.text(source).expand(count, -1, -1),
        negative=model.text("").expand(count, -1, -1),
        scale=torch.full((count,), SOURCE_GUIDANCE_SCALE, device=model.device),
    )
    return sample(unet, torch.stack(drawn).to(model.device), prompts, schedule).clone()


def finetuned(
    unet: UNet,
    model: StableDiffusion,
    schedule: Schedule,
    x0: torch.Tensor,
    texts: tuple[str, str],
    parameters: Mapping[str, Any],
) -> UNet:
    """A copy of the UNet in float32, tuned on pictures of the source text (algorithm 1).

    Each step of Adam takes one picture's x_t0, samples it back in a few deterministic steps, and
    descends minus the logarithm of the directional similarity, mapped to 0..1, and the mean
    absolute difference from the picture. The learning rate is in inverse proportion to the number
    of weights: steps of Adam change all of them at once, however many there are.

    Args:
        unet: the denoiser, which stays as it is.
        model: decodes.
        schedule: its first timestep is t0.
        x0: latents of the pictures, (K, C, h, w).
        texts: source and target.
        parameters: `clip`, `optimiser_steps`, `learning_rate`, `clip_weight`, `source_weight`; and
            `chain`, how many steps lead back from x_t0 while it is tuned.
    """
    text = model.text(texts[0]).clone().expand(len(x0), -1, -1)
    start = invert(unet, x0, text, schedule)[0].clone()
    loss = _Loss(model, x0, texts, parameters)
    tuned = UNet(deepcopy(unet.module).float())
    weights = list(tuned.module.requires_grad_(True).parameters())
    rate = parameters["learning_rate"] * WEIGHTS / sum(one.numel() for one in weights)
    optimiser = torch.optim.Adam(weights, lr=rate)
    chain = _spread(schedule, parameters["chain"])
    for number in range(parameters["optimiser_steps"]):
        turn, k = divmod(number, len(x0))
        optimiser.param_groups[0]["lr"] = rate * GROWTH**turn
        optimiser.zero_grad()
        loss(k, _sampled(tuned, start[k : k + 1], text[k : k + 1], chain)).backward()
        optimiser.step()
    tuned.module.requires_grad_(False)
    return tuned


class _Loss:
    def __init__(
        self,
        model: StableDiffusion,
        x0: torch.Tensor,
        texts: tuple[str, str],
        parameters: Mapping[str, Any],
    ) -> None:
        self._model, self._parameters = model, parameters
        self._critic = critic(parameters["clip"], model)
        self._source_text, self._text = (self._critic.text(text) for text in texts)
        with torch.no_grad():
            self._pictures = torch.cat([shown(model.pixels(one[None])) for one in x0])
            self._seen = self._critic.images(self._pictures)

    def __call__(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """Of the latents x0 (1, C, h, w) that picture k came back as."""
        image = shown(self._model.pixels(x))
        seen = self._critic.images(image)
        turned = direction(seen, self._seen[k : k + 1], self._text, self._source_text)
        told = -((2 - turned) / 2).clamp(min=1e-6).log().mean()
        kept = (image - self._pictures[k : k + 1]).abs().mean()
        weights = self._parameters
        loss: torch.Tensor = weights["clip_weight"] * told + weights["source_weight"] * kept
        return loss


def _sampled(unet: UNet, x: torch.Tensor, text: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """Deterministic sampling that gradients flow through."""
    for index, t in enumerate(schedule.timesteps):
        x = step(unet(x, t, text), x, schedule, index)
    return x


def _spread(schedule: Schedule, steps: int) -> Schedule:
    """At most so many of its timesteps, evenly spread, the first and the last among them."""
    last = schedule.steps - 1
    chosen = {round(k * last / max(1, steps - 1)) for k in range(steps)}
    return replace(schedule, timesteps=tuple(schedule.timesteps[n] for n in sorted(chosen)))


def _seed(text: str, number: int) -> int:
    told = hashlib.sha256(f"{number}/{text}".encode()).digest()
    return int.from_bytes(told[:7], "big")
