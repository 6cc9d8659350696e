"""Plug-and-Play translation against the reference, over every combination of what shapes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Guidance, Injecting, Prompts, generate, translate
from pnp_batch.diffusion.unet import UNet
from pnp_batch.methods.base import Batch
from pnp_batch.methods.pnp import PlugAndPlay
from tests import reference, tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, both_schedules, far, latents, rows, texts

PUBLISHED = {"pnp_f_layers": "4", "pnp_attn_layers": "4-11"}


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
@pytest.mark.parametrize(
    ("steps", "f", "attn"), [(1, 1.0, 1.0), (4, 0.8, 0.5), (7, 0.33, 0.8), (10, 0.8, 0.5)]
)
def test_translation_is_the_references(unets, layout, prediction, steps, f, attn):
    unet, one = unets[layout], rows(steps, [0])
    schedule, noise = both_schedules(steps, prediction)
    result = one.translated(unet, schedule, int(steps * f), int(steps * attn))
    assert result.dtype == torch.float32
    assert far(result, one.by_hand(unet, noise, f, attn)) < TOLERANCE


@pytest.mark.parametrize(
    ("f", "attn"),
    [(0, 0), (1, 1), (0, 1), (1, 0), (0.33, 0.8), (0.7, 0.34), (0.99, 0.67)],
)
def test_each_threshold_injects_into_that_share_of_the_first_steps(unet, f, attn):
    steps = 3
    one = rows(steps, [0])
    schedule, noise = both_schedules(steps, "v_prediction")
    parameters = {**PUBLISHED, "pnp_f_t": f, "pnp_attn_t": attn}
    batch = Batch(
        unet=unet,
        schedule=schedule,
        guidance=Guidance(one.trajectory, one.source, torch.tensor(one.owner)),
        prompts=Prompts(one.target, one.negative, torch.tensor(one.scale)),
        noise=latents(1),
        parameters=parameters,
    )
    result = PlugAndPlay().translate(batch)
    assert far(result, one.by_hand(unet, noise, f, attn)) < TOLERANCE


def test_each_further_step_of_either_injection_changes_the_result(unet):
    schedule, _ = both_schedules(2, "v_prediction", timestep_spacing="trailing")
    one = rows(2, [0])
    results = [one.translated(unet, schedule, f, attn) for f in (0, 1, 2) for attn in (0, 1, 2)]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert far(a, b) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [{"timestep_spacing": "trailing"}, {"steps_offset": 0, "set_alpha_to_one": True}],
    ids=str,
)
def test_translation_follows_the_models_own_schedule(unet, changes):
    schedule, noise = both_schedules(3, **changes)
    one = rows(3, [0])
    result = one.translated(unet, schedule, 2, 1)
    assert far(result, one.by_hand(unet, noise, 0.8, 0.5)) < TOLERANCE


def test_without_injection_translation_is_plain_sampling_from_the_guidances_noise(unet):
    schedule, noise = both_schedules(3)
    one = rows(3, [0])
    plain, _ = reference.sample(
        unet.module, one.trajectory[0], one.target, one.negative, 7.5, noise
    )
    assert far(one.translated(unet, schedule, 0, 0), plain) < TOLERANCE


def test_the_guidance_branch_sees_its_own_latent_and_prompt_at_every_timestep(unet):
    schedule, noise = both_schedules(2, "v_prediction", timestep_spacing="trailing")
    one = rows(2, [0])
    result = one.translated(unet, schedule, 2, 2)
    later = one.trajectory.clone()
    later[1] = latents(1, seed=5)
    for other in (
        replace(one, trajectory=later),
        replace(one, source=texts(1, 7)),
    ):
        changed = other.translated(unet, schedule, 2, 2)
        assert far(changed, result) > 10 * TOLERANCE
        assert far(changed, other.by_hand(unet, noise, 1, 1)) < TOLERANCE


@pytest.mark.parametrize(("layout", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction")])
def test_the_whole_path_from_image_to_translation_is_the_references(layout, prediction):
    unet = UNet(tiny.new_unet(layout, strength=0.1))
    schedule, noise = both_schedules(3, prediction, inversion_steps=6)
    x0, target, negative = latents(1), texts(1, 2), texts(1, 3)
    trajectory = invert(unet, x0, EMPTY, schedule)
    guidance = Guidance(trajectory, EMPTY, torch.tensor([0]))
    prompts = Prompts(target, negative, torch.tensor([7.5]))
    result = translate(unet, guidance, prompts, schedule, Injecting(2, 1))

    by_hand = reference.invert(unet.module, x0, EMPTY, noise, multiple=2)
    edit = reference.Edit(target, negative, 7.5, pnp_f_t=0.8, pnp_attn_t=0.5)
    assert far(result, reference.translate(unet.module, by_hand, EMPTY, edit, noise)) < TOLERANCE


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
def test_generated_guidance_injects_from_the_conditional_branch_of_its_own_sampling(
    unet, prediction
):
    schedule, noise = both_schedules(3, prediction)
    x, source, empty = latents(1, 8), texts(1, 8), EMPTY
    x0, trajectory = generate(unet, x, Prompts(source, empty, torch.tensor([5.0])), schedule)
    by_hand, met = reference.sample(unet.module, x, source, empty, 5.0, noise)
    assert far(x0, by_hand) < TOLERANCE
    for latent, t in zip(trajectory, noise.timesteps, strict=True):
        assert far(latent, met[t]) < TOLERANCE

    target, negative = texts(1, 2), texts(1, 3)
    guidance = Guidance(trajectory, source, torch.tensor([0]))
    prompts = Prompts(target, negative, torch.tensor([7.5]))
    result = translate(unet, guidance, prompts, schedule, Injecting(2, 1))
    edit = reference.Edit(target, negative, 7.5, pnp_f_t=0.8, pnp_attn_t=0.5)
    assert far(result, reference.translate(unet.module, met, source, edit, noise)) < TOLERANCE
