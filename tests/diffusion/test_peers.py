"""Side by side with diffusers' own pipeline and schedulers, on whole tiny models."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline

from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Prompts, generate, reconstruct
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.steps import Sampling
from tests import tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, far, latents


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_plain_generation_is_stable_diffusion_pipelines(tiny_model_dir, layout):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir(layout), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    published = pipeline.scheduler.config
    pipeline.scheduler = DDIMScheduler.from_config(published)
    prompts, negatives = ["a red barn", "a cat"], ["blurry", ""]
    x = latents(2)
    expected = pipeline(
        prompts,
        negative_prompt=negatives,
        guidance_scale=7.5,
        num_inference_steps=4,
        latents=x,
        output_type="latent",
    ).images

    target, negative = pipeline.encode_prompt(prompts, "cpu", 1, True, negatives)
    unet = UNet(pipeline.unet)
    asked = Prompts(target, negative, torch.tensor([7.5, 7.5]))
    result, _ = generate(unet, x, asked, make_schedule(published, Sampling(4)))
    assert far(result, expected) < TOLERANCE


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
@pytest.mark.parametrize("steps", [4, 7])
def test_inversion_is_ddim_inverse_schedulers(prediction, steps):
    """The conventions agree: the UNet at (x_s, t), its output read at s, clipping switched off."""
    config = {**tiny.PUBLISHED["sd2"], "prediction_type": prediction}
    unet = UNet(tiny.new_unet("sd2", strength=0.25))
    scheduler = DDIMInverseScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    x, met = latents(1), []
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, EMPTY), t, x).prev_sample
        met.append(x)
    trajectory = invert(unet, latents(1), EMPTY, make_schedule(config, Sampling(steps)))
    assert far(trajectory, torch.stack(met[::-1])) < TOLERANCE


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_sampling_is_ddim_schedulers(unet, prediction, spacing):
    """For steps that divide 1000: diffusers goes down by 1000 // steps whatever its own list says
    next, while here every step goes to the next timestep of the list."""
    config = {
        **tiny.PUBLISHED["sd2"],
        "prediction_type": prediction,
        "timestep_spacing": spacing,
    }
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(4)
    x = latents(1)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, EMPTY), t, x).prev_sample
    result = reconstruct(unet, latents(1), EMPTY, make_schedule(config, Sampling(4)))
    assert far(result, x) < TOLERANCE
