"""Sampling: noise latents in, image latents out, plain or with Plug-and-Play injection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from pnp_batch.diffusion.injection import injected
from pnp_batch.diffusion.schedule import Schedule, move, predicted
from pnp_batch.diffusion.sites import Sites
from pnp_batch.diffusion.unet import Branch, UNet

# How strongly a generated guidance image follows its source prompt, as published.
SOURCE_GUIDANCE_SCALE = 5.0


@dataclass(frozen=True)
class Guidance:
    """The guidance images of a batch: G trajectories, and which of them each row follows.

    Attributes:
        trajectory: latents at the sampling timesteps, float32 (steps, G, C, h, w); empty for a
            method that does not invert.
        text: embeddings of the prompts they were inverted or generated with, (G, tokens, D).
        owner: for each of the N rows the index of its guidance image, int64 (N,).
        x0: latents of the images themselves, float32 (G, C, h, w); empty for a method that needs
            none.
    """

    trajectory: torch.Tensor
    text: torch.Tensor
    owner: torch.Tensor
    x0: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Prompts:
    """What the N rows of a batch ask for.

    Attributes:
        target: text embeddings, (N, tokens, D).
        negative: likewise, or one for each step (steps, N, tokens, D).
        scale: strength of the classifier-free guidance, float32 (N,).
    """

    target: torch.Tensor
    negative: torch.Tensor
    scale: torch.Tensor

    def at(self, index: int) -> Prompts:
        """Those of step `index` of the sampling, with one negative embedding a row."""
        return self if self.negative.ndim == 3 else replace(self, negative=self.negative[index])

    @property
    def both(self) -> torch.Tensor:
        """The negative rows, then the target rows: (2N, tokens, D)."""
        return torch.cat([self.negative, self.target])

    def combine(self, output: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) of a (2N, ...) output."""
        negative, target = output.chunk(2)
        return negative + self.scale.view(-1, 1, 1, 1) * (target - negative)


@dataclass(frozen=True)
class Injecting:
    """What Plug-and-Play injects, and for how long.

    Attributes:
        feature_steps, attention_steps: in how many of the first steps.
        sites: where; None for the published ones.
    """

    feature_steps: int
    attention_steps: int
    sites: Sites | None = None

    def at(self, index: int) -> dict[str, bool]:
        """Whether features and attention are injected in a step."""
        return {
            "features": index < self.feature_steps,
            "attention": index < self.attention_steps,
        }


@torch.inference_mode()
def reconstruct(
    unet: UNet, x: torch.Tensor, text: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """Samples from x_T (B, C, h, w) with one prompt a row and no guidance; returns x0."""
    branch = Branch(unet, schedule.sampling)
    for index, t in enumerate(schedule.timesteps):
        output = branch(x, t, text, whole=schedule.sampling.is_whole(index))
        x = step(output, x, schedule, index)
    return x


def noise(seed: int, shape: tuple[int, ...], before: int = 0) -> torch.Tensor:
    """Standard normal noise of a row's own seed, float32 on the CPU, after `before` other draws."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(before):
        torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)


@torch.inference_mode()
def sample(
    unet: UNet,
    x: torch.Tensor,
    prompts: Prompts,
    schedule: Schedule,
    *,
    first: int = 0,
    meet: Callable[[torch.Tensor], None] = lambda x: None,
) -> torch.Tensor:
    """Samples with classifier-free guidance.

    Args:
        unet: the denoiser.
        x: latents (N, C, h, w) at the noise level of timestep `first` of the sampling.
        prompts: of the N rows.
        schedule: the sampling schedule.
        first: how many of its steps are left out.
        meet: called with the latents of each timestep before it is sampled.

    Returns:
        The latents x0, (N, C, h, w); `x` if no step is left.
    """
    branch = Branch(unet, schedule.sampling)
    for index in range(first, schedule.steps):
        meet(x)
        text = prompts.at(index).both
        whole = schedule.sampling.is_whole(index - first)
        output = branch(torch.cat([x, x]), schedule.timesteps[index], text, whole=whole)
        x = step(prompts.combine(output), x, schedule, index)
    return x


def generate(
    unet: UNet, x: torch.Tensor, prompts: Prompts, schedule: Schedule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples from x_T (N, C, h, w) with classifier-free guidance.

    Returns:
        x0, and the latents met at each sampling timestep, (steps, N, C, h, w).
    """
    met: list[torch.Tensor] = []
    x0 = sample(unet, x, prompts, schedule, meet=met.append)
    return x0, torch.stack(met)


@torch.inference_mode()
def translate(
    unet: UNet,
    guidance: Guidance,
    prompts: Prompts,
    schedule: Schedule,
    injecting: Injecting,
) -> torch.Tensor:
    """Plug-and-Play translation (Tumanyan et al., CVPR 2023, algorithm 1).

    Starts every row from its guidance image's x_T. While injection lasts, each step first runs
    the guidance images' own latents of that timestep through the UNet, as far as the last site
    that is needed, and then the negative and target branches of all rows with the guidance
    images' features and queries and keys.

    Returns:
        The translated latents x0, (N, C, h, w).

    Raises:
        InjectionNotFired: a scheduled site was not met.
    """
    x = guidance.trajectory[0].index_select(0, guidance.owner)
    owner = torch.cat([guidance.owner, guidance.owner])
    source, translated = Branch(unet, schedule.sampling), Branch(unet, schedule.sampling)
    with injected(injecting.sites or unet.sites, owner) as injection:
        for index, t in enumerate(schedule.timesteps):
            whole = schedule.sampling.is_whole(index)
            injection.guidance(
                partial(source, guidance.trajectory[index], t, guidance.text, whole=whole),
                **injecting.at(index),
                whole=whole,
            )
            text = prompts.at(index).both
            output = injection.translated(
                partial(translated, torch.cat([x, x]), t, text, whole=whole)
            )
            x = step(prompts.combine(output), x, schedule, index)
    return x


def step(output: torch.Tensor, x: torch.Tensor, schedule: Schedule, index: int) -> torch.Tensor:
    """One DDIM step down from latents x, from timestep `index` of the sampling to the one below."""
    t, s = schedule.timesteps[index], schedule.below(index)
    x0, eps = predicted(output, x, schedule.level(t), schedule.prediction)
    return move(x0, eps, schedule.level(s))
