"""DDIM's schedule and its steps, as pure functions (Song et al., arXiv 2010.02502, eq. 12).

In: a model's own scheduler configuration. Out: `Schedule`, an explicit list of timesteps with
`alpha_bar` at each, and `predicted` / `move`, the two halves of every DDIM step in either
direction. Latents are float32 of shape (B, C, h, w) whatever the UNet computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from pnp_batch.errors import InvalidConfig, InvalidModel
from pnp_batch.models.check import PREDICTIONS
from pnp_batch.steps import Sampling


@dataclass(frozen=True)
class Schedule:
    """Sampling timesteps in descending order and the noise level of every timestep.

    Attributes:
        timesteps: the sampling timesteps, descending (SD, 50 steps: 981, 961, ..., 1).
        alpha_bar: cumulative product of alphas, one per training timestep.
        final_alpha_bar: the level below the last timestep.
        prediction: what the UNet's output means, `epsilon` or `v_prediction`.
        sampling: how the steps are taken.
    """

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    final_alpha_bar: float
    prediction: str
    sampling: Sampling

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.timesteps)

    def level(self, t: int | None) -> float:
        """alpha_bar at a timestep; None is the level below the last one, that of the image."""
        return self.final_alpha_bar if t is None else self.alpha_bar[t]

    def below(self, index: int) -> int | None:
        """The timestep that step `index` of the sampling arrives at."""
        return self.timesteps[index + 1] if index + 1 < self.steps else None

    def ascending(self) -> list[tuple[int | None, int]]:
        """The steps (s, t) of the inversion, from the image up to the noisiest timestep.

        Every interval between two sampling timesteps is divided into `inversion_steps / steps`
        parts, so that each sampling timestep is met exactly; and so is the interval below the
        first, as far as there are timesteps in it.

        Raises:
            InvalidConfig: the inversion steps are no multiple of the steps, or too many.
        """
        inversion_steps = self.sampling.inversion
        parts, left = divmod(inversion_steps, self.steps)
        if left or not parts:
            raise InvalidConfig(
                f"inversion_steps is {inversion_steps}, not a multiple of steps, {self.steps}",
                f"use --inversion-steps {max(1, parts) * self.steps}",
            )
        rising = self.timesteps[::-1]
        below = {round(rising[0] * k / parts) for k in range(1, parts)} - {0, rising[0]}
        marks = [*sorted(below), rising[0]]
        for low, high in pairwise(rising):
            marks += [low + round((high - low) * k / parts) for k in range(1, parts + 1)]
        if len(set(marks)) != len(marks):
            raise InvalidConfig(
                f"inversion_steps {inversion_steps} asks for more timesteps than the model has",
                "use fewer --inversion-steps",
            )
        return list(zip([None, *marks[:-1]], marks, strict=True))


def make_schedule(scheduler_config: Mapping[str, Any], sampling: Sampling) -> Schedule:
    """Reads the schedule out of a model's scheduler configuration.

    Raises:
        InvalidModel: the model predicts neither noise nor velocity.
        InvalidConfig: more steps than the model was trained with.
    """
    prediction = str(scheduler_config.get("prediction_type", "epsilon"))
    if prediction not in PREDICTIONS:
        raise InvalidModel(
            f"the model predicts {prediction!r}; DDIM inversion here needs one of {PREDICTIONS}",
            "use a Stable Diffusion 1.x or 2.x model",
        )
    from diffusers import DDIMScheduler

    # diffusers' scheduler owns every spacing rule (leading, trailing, offsets, zero terminal SNR).
    scheduler, steps = DDIMScheduler.from_config(dict(scheduler_config)), sampling.steps
    if steps > scheduler.config.num_train_timesteps:
        raise InvalidConfig(
            f"steps is {steps}, but the model knows {scheduler.config.num_train_timesteps}",
            "use fewer --steps",
        )
    scheduler.set_timesteps(steps)
    return Schedule(
        timesteps=tuple(int(t) for t in scheduler.timesteps),
        alpha_bar=tuple(scheduler.alphas_cumprod.double().tolist()),
        final_alpha_bar=float(scheduler.final_alpha_cumprod),
        prediction=prediction,
        sampling=sampling,
    )


def predicted(
    output: torch.Tensor, x: torch.Tensor, alpha_bar: float, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits a UNet output at `x` of noise level `alpha_bar` into (x0, eps)."""
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    if prediction == "v_prediction":
        return signal * x - noise * output, signal * output + noise * x
    return (x - noise * output) / signal, output


def ancestral(
    x0: torch.Tensor, eps: torch.Tensor, now: float, then: float
) -> tuple[torch.Tensor, float]:
    """Mean and variance of a DDPM step between two noise levels: eq. 12 with eta = 1.

    Args:
        x0, eps: as `predicted` splits them at the noisier one.
        now, then: alpha_bar of the noisier and of the cleaner level.
    """
    variance = (1 - then) / (1 - now) * (1 - now / then)
    mean: torch.Tensor = then**0.5 * x0 + (1 - then - variance) ** 0.5 * eps
    return mean, variance


def move(x0: torch.Tensor, eps: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """The latent at noise level `alpha_bar` on the deterministic DDIM path through (x0, eps)."""
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    moved: torch.Tensor = signal * x0 + noise * eps
    return moved
