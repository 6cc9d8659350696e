"""SDEdit: the guidance image noised part of the way, then sampled with the target prompt.

Meng, He, Song, Song, Wu, Zhu, Ermon: SDEdit: Guided Image Synthesis and Editing with Stochastic
Differential Equations, ICLR 2022, arXiv 2108.01073, algorithm 1; here with deterministic DDIM steps
and classifier-free guidance, as image-to-image pipelines of Stable Diffusion run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch


class SDEdit(Method):
    """The last `int(steps * strength)` of the steps, from the image's latents and fresh noise."""

    name = "sdedit"
    summary = "SDEdit: noise up to `strength`, then sampling; trades structure for text"
    paper = "Meng et al., ICLR 2022, arXiv 2108.01073"
    parameters = ("guidance_scale", "negative_prompt", "strength")
    inverts = False

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Two evaluations of each step that is run."""
        whole, shallow = sampling.evaluations(_steps_run(sampling.steps, parameters))
        return Cost(translated=2 * whole, translated_shallow=2 * shallow)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Starts where the steps to run begin: at the image itself, a mixture, or pure noise."""
        from pnp_batch.diffusion.sampling import sample
        from pnp_batch.diffusion.schedule import move

        schedule = batch.schedule
        first = schedule.steps - _steps_run(schedule.steps, batch.parameters)
        x = batch.guidance.x0.index_select(0, batch.guidance.owner)
        if first == 0:
            x = batch.noise
        elif first < schedule.steps:
            x = move(x, batch.noise, schedule.level(schedule.timesteps[first]))
        return sample(batch.unet, x, batch.prompts, schedule, first=first)


def _steps_run(steps: int, parameters: Mapping[str, Any]) -> int:
    return int(steps * parameters["strength"])
