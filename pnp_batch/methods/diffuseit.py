"""DiffuseIT: sampling from the noised guidance image, each step led by CLIP and kept in shape.

Kwon, Ye: Diffusion-based Image Translation using Disentangled Style and Content Representation,
ICLR 2023, arXiv 2209.15264, and the published code's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Batch, Cost
from pnp_batch.methods.guided import Guided, Scene
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

RESAMPLINGS = 10


class DiffuseIT(Guided):
    """The last `int(steps * strength)` of the steps, from the image's latents and fresh noise, as
    an ancestral sampler whose mean is moved against the gradient of the guide's losses; the first
    of these steps is taken ten times.

    Unlike the published one it works on the latents of Stable Diffusion and decodes them for its
    losses. The published denoiser knows no texts: here the UNet has the empty prompt. The variance
    is that of the posterior, which the published denoiser has learned. One CLIP takes the place of
    five, and its keys and class token that of DINO's. What the published code switches on by
    options of its own is left out: the restart when pixels leave their range, and the contrastive
    loss that grows and shrinks with the CLIP loss.

    Published are 60 of 100 steps, up to alpha_bar 0.03 of its schedule; Stable Diffusion's is there
    at a `strength` of 0.83.
    """

    name = "diffuseit"
    summary = "DiffuseIT: sampling led by CLIP, its keys keep the guidance image's structure"
    paper = "Kwon & Ye, ICLR 2023, arXiv 2209.15264"
    wants = ("source_prompt",)
    parameters = ("clip", "strength", "cutouts", "clip_weight", "structure_weight")
    defaults: Mapping[str, Any] = {
        "cutouts": 8,
        "clip_weight": 2000.0,
        "structure_weight": 1000.0,
    }
    exact_steps = True

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """An evaluation and a decoding a step, each with a pass backwards."""
        run = int(sampling.steps * parameters["strength"])
        spent = run + RESAMPLINGS - 1 if run else 0
        return Cost(translated=spent, gradients=spent, decodes=spent)

    def still(self, batch: Batch) -> bool:
        """Without a step to run."""
        return _first(batch) == batch.schedule.steps

    def led(self, scene: Scene) -> torch.Tensor:
        """Starts where the steps to run begin: at the image itself, a mixture, or pure noise."""
        from pnp_batch.diffusion.guide import Guide, led
        from pnp_batch.diffusion.schedule import move

        batch, first = scene.batch, _first(scene.batch)
        schedule = batch.schedule
        assert batch.model is not None
        texts = scene.prompts, scene.source_prompts
        guide = Guide(batch.model, scene.x0, texts, scene.dice, batch.parameters)
        text = batch.model.text("").clone().expand(len(scene.x0), -1, -1)
        x = move(scene.x0, scene.noise, schedule.level(schedule.timesteps[first]))
        repeats = [RESAMPLINGS] + [1] * (schedule.steps - first - 1)
        return led(batch.unet, x, text, schedule, guide, repeats)


def _first(batch: Batch) -> int:
    """Index of the first of the steps to run."""
    return batch.schedule.steps - int(batch.schedule.steps * batch.parameters["strength"])
