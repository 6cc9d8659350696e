"""The schedule against one that is worked out by hand from the betas."""

from __future__ import annotations

import pytest
import torch

from pnp_batch.diffusion.schedule import make_schedule, move, predicted
from pnp_batch.errors import InvalidConfig, InvalidModel
from pnp_batch.steps import Sampling
from tests import reference, tiny
from tests.diffusion.scene import config, far, latents

CONFIGS = {
    "Stable Diffusion 1.5, PNDM": tiny.PUBLISHED["sd1"],
    "Stable Diffusion 2.1, DDIM": tiny.PUBLISHED["sd2"],
    "no offset, final level 1": config(steps_offset=0, set_alpha_to_one=True),
    "trailing": config(timestep_spacing="trailing"),
    "linspace": config(timestep_spacing="linspace"),
    "linear betas": config(beta_schedule="linear"),
    "only betas": {"beta_start": 0.001, "beta_end": 0.02},
    "500 training steps": config(num_train_timesteps=500),
    "zero terminal SNR": config(
        "v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 10, 50, 333])
def test_a_schedule_is_the_one_its_configuration_stands_for(name, steps):
    schedule = make_schedule(CONFIGS[name], Sampling(steps))
    noise = reference.noise_schedule(CONFIGS[name], steps)
    assert list(schedule.timesteps) == noise.timesteps
    assert schedule.steps == steps
    assert schedule.prediction == noise.prediction
    # diffusers multiplies up to 1000 alphas in float32: 1e-5 relative, at the noisiest levels.
    assert schedule.alpha_bar == pytest.approx(noise.alpha_bar, rel=2e-5, abs=1e-9)
    assert schedule.final_alpha_bar == pytest.approx(noise.final, rel=1e-6)


def test_fifty_steps_are_those_of_the_published_code():
    schedule = make_schedule(tiny.PUBLISHED["sd1"], Sampling(50))
    assert schedule.timesteps[:3] == (981, 961, 941)
    assert schedule.timesteps[-2:] == (21, 1)
    assert schedule.level(None) == schedule.level(0) < 1
    assert schedule.below(0) == 961
    assert schedule.below(49) is None


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("steps", "multiple"), [(1, 1), (1, 3), (4, 3), (7, 1), (7, 2), (10, 6)])
def test_an_inversion_ascends_through_every_sampling_timestep(name, steps, multiple):
    schedule = make_schedule(CONFIGS[name], Sampling(steps, steps * multiple))
    noise = reference.noise_schedule(CONFIGS[name], steps)
    pairs = schedule.ascending()
    ascending = [t for _, t in pairs]
    assert ascending == reference.inversion_timesteps(noise, multiple)
    assert ascending == sorted(set(ascending))
    assert set(ascending) >= set(schedule.timesteps)
    assert [s for s, _ in pairs] == [None, *ascending[:-1]]


def test_more_inversion_steps_than_the_model_has_timesteps_are_refused():
    with pytest.raises(InvalidConfig, match="2000"):
        make_schedule(config(), Sampling(10, 2000)).ascending()


def test_more_steps_than_the_model_has_timesteps_are_refused():
    with pytest.raises(InvalidConfig, match="1001"):
        make_schedule(config(), Sampling(1001))


def test_a_model_that_predicts_the_image_itself_is_refused():
    with pytest.raises(InvalidModel, match="sample"):
        make_schedule(config("sample"), Sampling(10))


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
@pytest.mark.parametrize(("now", "then"), [(0.9991, 0.2), (0.5, 0.9), (0.0047, 0.9991)])
def test_a_step_is_ddims(prediction, now, then):
    x, output = latents(2).split(1)
    moved = move(*predicted(output, x, now, prediction), then)
    assert far(moved, reference.ddim(output, x, now, then, prediction)) < 1e-6


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
def test_the_two_parts_of_a_prediction_make_up_the_latent_it_was_made_from(prediction):
    x, output = latents(2).split(1)
    torch.testing.assert_close(move(*predicted(output, x, 0.3, prediction), 0.3), x)
