"""MasaCtrl against the reference, row by row of mixed batches, and at its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pnp_batch.errors import InvalidConfig
from pnp_batch.methods.base import Asked
from pnp_batch.methods.ddim import DDIM
from pnp_batch.methods.masactrl import MasaCtrl
from pnp_batch.models import StableDiffusion, find
from pnp_batch.steps import Sampling
from tests import reference_control as by_hand
from tests.diffusion.editing import Scene
from tests.diffusion.scene import TOLERANCE, far

ROWS = (Asked("a running cat"), Asked("a cat", "ugly"), Asked("a dog"))
# What names the subject in the source prompt and in each row's.
SUBJECTS = (["cat"], ["cat"]), (["cat"], ["cat"]), ([], ["dog"])


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return StableDiffusion(find(str(tiny_model_dir("sd1"))))


@pytest.fixture
def scene(model):
    given = {"masactrl_step": 0}
    return Scene(model, 2, ["a red cat", ""], [0, 0, 1], ROWS, [7.5, 4.0, 2.0], given)


def edit(scene: Scene, number: int, subjects=SUBJECTS) -> by_hand.Edit:
    """The reference's, with the scene's parameters."""
    given, tokens = scene.values(MasaCtrl()), None
    if given["masactrl_mask"]:
        prompts = scene.sources[scene.owner[number]], scene.rows[number].prompt
        tokens = [
            [p for word, at in by_hand.letters(prompt)[1] if word in words for p in at]
            for prompt, words in zip(prompts, subjects[number], strict=True)
        ]
    return by_hand.masactrl(
        given["masactrl_step"], given["masactrl_layer"], tokens, given["mask_threshold"]
    )


def check(scene: Scene, subjects=SUBJECTS) -> torch.Tensor:
    result, evaluations = scene.evaluated(MasaCtrl())
    most = scene.cost(MasaCtrl())
    if scene.given.get("inversion") == "null-text":
        assert evaluations <= most
    else:
        assert evaluations == most
    for number in range(len(scene.rows)):
        expected = scene.by_hand(number, edit(scene, number, subjects))
        assert far(result[[number]], expected) < TOLERANCE, number
    return result


def given(scene: Scene, **more: object) -> Scene:
    return replace(scene, given={**scene.given, **more})


@pytest.mark.parametrize("inversion", MasaCtrl.inversions)
def test_every_row_of_a_mixed_batch_is_the_references(scene, inversion):
    if inversion == "null-text":  # which takes its time by hand
        scene = replace(scene.only(0, 1), sources=scene.sources[:1])
    check(given(scene, inversion=inversion))


def test_other_layouts_and_predictions(scene, tiny_model_dir):
    other = StableDiffusion(find(str(tiny_model_dir("sd2"))))
    check(replace(scene, model=other, prediction="v_prediction", scale=[2.0] * 3))


@pytest.mark.parametrize("mask", [False, True])
def test_rows_of_a_batch_are_what_they_are_alone(scene, mask):
    scene = given(scene, masactrl_mask=mask)
    together, _ = scene.evaluated(MasaCtrl())
    for number in range(len(scene.rows)):
        alone, _ = scene.only(number).evaluated(MasaCtrl())
        assert far(alone, together[[number]]) < TOLERANCE


@pytest.mark.parametrize(("step", "layer"), [(0, 0), (0, 15), (1, 7)])
def test_step_and_layer_say_from_where_on(scene, step, layer):
    one = replace(scene.only(0), steps=3)
    one = given(one, masactrl_step=step, masactrl_layer=layer)
    check(one)
    later = given(one, masactrl_step=step + 1).evaluated(MasaCtrl())[0]
    assert far(one.evaluated(MasaCtrl())[0], later) > 10 * TOLERANCE


@pytest.mark.parametrize("inversion", ["ddim", "direct"])
def test_from_no_step_on_it_is_plain_sampling_and_no_source_is_evaluated(scene, inversion):
    late = given(scene, masactrl_step=2, inversion=inversion)
    result, evaluations = late.evaluated(MasaCtrl())
    assert far(result, replace(scene, given={}).evaluated(DDIM())[0]) < TOLERANCE
    assert evaluations == late.cost(MasaCtrl()) == 2 * 2 * 3


def test_direct_evaluates_sources_from_the_first_step_that_needs_them(scene):
    three = replace(scene, steps=3)
    first, later = (given(three, masactrl_step=n, inversion="direct") for n in (0, 1))
    saved = 2 * len(scene.sources)
    assert first.evaluated(MasaCtrl())[1] - later.evaluated(MasaCtrl())[1] == saved
    check(given(later.only(0), masactrl_mask=True))


@pytest.mark.parametrize("layer", [2, 10, 14])
def test_subject_and_background_attend_each_to_their_own(scene, layer):
    """Layers 0, 1 and 13 to 15 have the 8 x 8 maps; those of 10 to 12 have 4 x 4 places."""
    masked = given(scene, masactrl_mask=True, masactrl_layer=layer, mask_threshold=0.4)
    result = check(masked)
    plain, _ = given(masked, masactrl_mask=False).evaluated(MasaCtrl())
    changed = [far(a, b) > 10 * TOLERANCE for a, b in zip(result, plain, strict=True)]
    # Of an image without a subject all is subject: there is no background to attend to.
    assert changed == [True, True, False]


def test_before_any_map_is_met_there_are_no_masks(scene):
    one = given(scene.only(0), masactrl_mask=True, masactrl_layer=0)
    check(one)


def test_the_subject_may_be_asked_for(scene):
    rows = [replace(scene.rows[0], parameters={"subject": "Red running"})]
    one = given(replace(scene.only(0), rows=rows), masactrl_mask=True, mask_threshold=0.4)
    result = check(one, [(["red"], ["running"])])
    assert far(result, replace(one, rows=scene.rows[:1]).evaluated(MasaCtrl())[0]) > TOLERANCE


@pytest.mark.parametrize(
    ("inversion", "evaluated"), [("ddim", 10), ("direct", 6), ("negative-prompt", 5)]
)
def test_a_source_is_evaluated_as_far_as_it_is_read(inversion, evaluated):
    cost = MasaCtrl().cost(Sampling(5), {"inversion": inversion, "masactrl_step": 2})
    assert (cost.guidance, cost.translated) == (evaluated, 10)


def test_an_inversion_that_does_not_apply_is_refused():
    with pytest.raises(InvalidConfig, match="edit-friendly"):
        MasaCtrl().check({"inversion": "edit-friendly"})
