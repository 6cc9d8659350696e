"""Reuse of deep features between steps, against the reference."""

from __future__ import annotations

import pytest
import torch

from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Prompts, reconstruct, sample
from tests import reference, tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, both_schedules, far, latents, rows, texts

STEPS = 6


@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_a_translation_is_the_references(unets, layout, every):
    schedule, noise = both_schedules(STEPS, deep_every=every)
    some = rows(STEPS, [0, 0, 1, 1], scale=[3.0, 7.5, 5.0, 2.0])
    made = some.translated(unets[layout], schedule, int(STEPS * 0.8), int(STEPS * 0.5))
    for row, image in enumerate(some.owner):
        trajectory = dict(zip(noise.timesteps, some.trajectory[:, [image]], strict=True))
        edit = reference.Edit(
            some.target[[row]], some.negative[[row]], some.scale[row], pnp_f_t=0.8, pnp_attn_t=0.5
        )
        by_hand = reference.translate(
            unets[layout].module, trajectory, some.source[[image]], edit, noise, every
        )
        assert far(made[[row]], by_hand) < TOLERANCE


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
def test_an_inversion_is_the_references(unet, prediction):
    schedule, noise = both_schedules(STEPS, prediction, deep_every=3)
    images, text = latents(2), texts(2, seed=5)
    made = invert(unet, images, text, schedule)
    for image in range(2):
        by_hand = reference.invert(unet.module, images[[image]], text[[image]], noise, every=3)
        for number, t in enumerate(noise.timesteps):
            assert far(made[number, [image]], by_hand[t]) < TOLERANCE


def test_plain_sampling_is_the_references(unet):
    schedule, noise = both_schedules(STEPS, deep_every=3)
    x, negative, target = latents(1), texts(1, seed=3), texts(1, seed=4)
    trajectory = dict.fromkeys(noise.timesteps, x)

    def by_hand(scale):
        edit = reference.Edit(target, negative, scale, pnp_f_t=0, pnp_attn_t=0)
        return reference.translate(unet.module, trajectory, EMPTY, edit, noise, 3)

    prompts = Prompts(target, negative, torch.tensor([4.0]))
    assert far(sample(unet, x, prompts, schedule), by_hand(4.0)) < TOLERANCE
    assert far(reconstruct(unet, x, target, schedule), by_hand(1.0)) < TOLERANCE


def test_sampling_that_begins_later_begins_with_a_whole_step(unet):
    schedule, _ = both_schedules(STEPS, deep_every=3)
    prompts = Prompts(texts(1, seed=4), texts(1, seed=3), torch.tensor([4.0]))
    calls = []
    hook = unet.module.mid_block.register_forward_hook(lambda *_: calls.append(1))
    try:
        sample(unet, latents(1), prompts, schedule, first=2)  # as sdedit does
    finally:
        hook.remove()
    assert len(calls) == 2


def test_a_shallow_step_evaluates_few_layers(unet):
    schedule, _ = both_schedules(STEPS, deep_every=STEPS)
    calls = []
    hook = unet.module.mid_block.register_forward_hook(lambda *_: calls.append(1))
    try:
        rows(STEPS, [0, 0]).translated(unet, schedule, STEPS, STEPS)
    finally:
        hook.remove()
    assert len(calls) == 2  # of the guidance branch and of the translated ones, in the first step
