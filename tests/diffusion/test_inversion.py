"""DDIM inversion and reconstruction against the reference, and against the image itself."""

from __future__ import annotations

import pytest
import torch

from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import reconstruct
from pnp_batch.diffusion.unet import UNet
from tests import reference, tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, both_schedules, far, latents, texts


@pytest.fixture(scope="module")
def gentle():
    """UNets with a weak output, as smooth in x as trained ones. Inversion is an explicit scheme:
    with a UNet of random weights at full strength it magnifies rounding a thousandfold."""
    return {
        layout: UNet(tiny.new_unet(layout, strength=0.25, **tiny.DECODER_ATTENTION_ONLY))
        for layout in tiny.LAYOUTS
    }


def check(unet, steps, multiple, prediction="epsilon", **changes):
    schedule, noise = both_schedules(steps, prediction, inversion_steps=steps * multiple, **changes)
    x0 = latents(1)
    trajectory = invert(unet, x0, EMPTY, schedule)
    by_hand = reference.invert(unet.module, x0, EMPTY, noise, multiple)
    assert trajectory.dtype == torch.float32
    assert len(trajectory) == steps
    for latent, t in zip(trajectory, noise.timesteps, strict=True):
        assert far(latent, by_hand[t]) < TOLERANCE
    return trajectory, x0


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
@pytest.mark.parametrize("multiple", [1, 3])
def test_inversion_is_the_references(gentle, layout, prediction, multiple):
    trajectory, x0 = check(gentle[layout], 3, multiple, prediction)
    assert far(trajectory[0], x0) > 0.1  # it went somewhere


@pytest.mark.parametrize(("steps", "multiple"), [(1, 1), (1, 3), (4, 1), (7, 1), (7, 3), (10, 1)])
def test_inversion_keeps_the_sampling_timesteps_of_any_number_of_steps(gentle, steps, multiple):
    check(gentle["sd1"], steps, multiple, "v_prediction")


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_spacing": "trailing"},
        {"steps_offset": 0, "set_alpha_to_one": True},
        {"beta_schedule": "linear"},
    ],
    ids=str,
)
def test_inversion_follows_the_models_own_schedule(gentle, changes):
    check(gentle["sd1"], 3, 1, **changes)


def test_every_image_of_a_batch_is_inverted_with_its_own_prompt(gentle):
    schedule, noise = both_schedules(3)
    x0, text = latents(3), texts(3)
    trajectory = invert(gentle["sd1"], x0, text, schedule)
    for image in range(3):
        by_hand = reference.invert(gentle["sd1"].module, x0[[image]], text[[image]], noise)
        assert far(trajectory[0, [image]], by_hand[noise.timesteps[0]]) < TOLERANCE
    alone = invert(gentle["sd1"], x0[:1], EMPTY, schedule)
    assert far(alone[0], trajectory[0, :1]) > 100 * TOLERANCE  # the prompt does matter


@pytest.fixture(scope="module")
def smooth():
    """A UNet that changes little with x: as with trained ones, few steps already invert well."""
    return UNet(tiny.new_unet("sd1", strength=0.05, **tiny.DECODER_ATTENTION_ONLY))


def reconstruction_error(unet, steps, prediction, inversion_steps=None):
    schedule, _ = both_schedules(steps, prediction, inversion_steps=inversion_steps)
    x0 = latents(1)
    noisy = invert(unet, x0, EMPTY, schedule)[0]
    assert far(noisy, x0) > 0.03
    return float((reconstruct(unet, noisy, EMPTY, schedule) - x0).norm() / x0.norm())


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
def test_reconstruction_is_close_and_closer_with_more_inversion_steps(smooth, prediction):
    errors = [reconstruction_error(smooth, 3, prediction, 3 * n) for n in (1, 2, 4)]
    assert errors[2] < errors[1] < errors[0]
    if prediction == "epsilon":  # with v, three steps are too coarse whatever the UNet
        assert errors[0] < 0.1


def test_reconstruction_is_closer_with_more_steps_both_ways(smooth):
    errors = [reconstruction_error(smooth, steps, "v_prediction") for steps in (2, 6, 15)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.2


def test_reconstruction_is_sampling_without_guidance(gentle):
    schedule, noise = both_schedules(4)
    unet, text, x = gentle["sd2"], texts(2), latents(2)
    reconstructed = reconstruct(unet, x, text, schedule)
    for row in range(2):
        by_hand, _ = reference.sample(
            unet.module, x[[row]], text[[row]], EMPTY, scale=1.0, noise=noise
        )
        assert far(reconstructed[[row]], by_hand) < TOLERANCE
