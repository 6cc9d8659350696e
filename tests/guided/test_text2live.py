"""Text2LIVE: the layer over the picture, what it is judged by, and its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pnp_batch import methods
from pnp_batch.diffusion.critic import cut_outs
from pnp_batch.diffusion.layer import Generator, green, over, sparsity
from pnp_batch.methods import text2live
from pnp_batch.methods.base import Asked
from pnp_batch.methods.guided import Scene
from pnp_batch.steps import Sampling
from tests.guided.scene import BOAT, CAT, batch, do_not_know_each_other, made, pixels

FEW = {"optimiser_steps": 2, "cutouts": 1}
WEIGHTS = ("clip_weight", "structure_weight", "sparsity_weight")


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_layer_lies_over_the_picture():
    image = pixels(1)
    colours = torch.full_like(image, 0.5)
    assert over(image, colours, torch.zeros(1, 1, 32, 32)).equal(image)
    assert over(image, colours, torch.ones(1, 1, 32, 32)).equal(colours)
    half = over(image, colours, torch.full((1, 1, 32, 32), 0.5))
    assert (half - (image + 0.5) / 2).abs().max() < 1e-6
    screen = ((green(image)[0, :, 3, 5] + 1) / 2 * 255).tolist()
    assert screen == pytest.approx([0, 177, 64], abs=1e-3)


def test_sparsity_is_mean_and_squashed_mean():
    opacity = torch.tensor([0.0, 0.2, 1.0, 0.6]).view(1, 1, 2, 2)
    squashed = [2 / (1 + 2.718281828 ** (-5 * a)) - 1 for a in (0.0, 0.2, 1.0, 0.6)]
    assert float(sparsity(opacity)) == pytest.approx(0.45 + sum(squashed) / 4, rel=1e-5)


@pytest.mark.parametrize("side", [16, 32, 64, 72])
def test_the_generator_is_its_seeds_and_sees_the_picture(side):
    state = torch.get_rng_state()
    image = pixels(1, side)
    with torch.no_grad():
        colours, opacity = Generator(side, dice(1))(image)
        assert colours.shape == (1, 3, side, side)
        assert opacity.shape == (1, 1, side, side)
        assert -1 <= colours.min() < colours.max() <= 1
        assert 0 <= opacity.min() < opacity.max() <= 1
        assert colours.equal(Generator(side, dice(1))(image)[0])
        assert not colours.equal(Generator(side, dice(2))(image)[0])
        assert not colours.equal(Generator(side, dice(1))(pixels(2, side))[0])
    assert torch.get_rng_state().equal(state)


def scene(model, sees, row: Asked, **parameters: Any) -> Scene:
    given = batch(model, "text2live", [row], **parameters)
    x0 = given.guidance.x0.clone()
    return Scene(given, (row,), x0, given.noise, sees, [dice(3)])


@pytest.mark.parametrize(
    ("row", "subject"),
    [
        (CAT, CAT.source_prompt),
        (replace(CAT, parameters={"subject": "cat"}), "cat"),
        (replace(CAT, source_prompt=""), ""),
    ],
)
@pytest.mark.parametrize("only", [*WEIGHTS, None])
def test_the_loss_is_that_of_the_paper(model, sees, row, subject, only):
    """Every term by itself, and the relevance map with all weights 0."""
    told = {name: 0.7 * (name == only) for name in WEIGHTS}
    one = scene(model, sees, row, cutouts=3, **told)
    with torch.no_grad():
        image = model.pixels(one.x0).clamp(-1, 1)
        colours, opacity = Generator(32, dice(1))(image)
        found = float(text2live._Losses(one, image)((colours, opacity), 0.25))

        composite = opacity * colours + (1 - opacity) * image
        screened = opacity * colours + (1 - opacity) * green(image)
        views = [
            sees.images(cut_outs(part, sees.side, [dice(3)], 3, smallest=0.6))
            for part in (composite, screened, image)
        ]
        text = sees.text(row.prompt)
        screen_text = sees.text(f"{row.prompt} over a green screen.")
        expected = 0.0
        if only == "clip_weight":
            expected += float((views[0] @ text).acos().square().mean()) / 2
            expected += float((views[1] @ screen_text).acos().square().mean()) / 2
            if row.source_prompt:
                change = text - sees.text(row.source_prompt)
                expected += 1 - float(F.cosine_similarity(views[0] - views[2], change[None]).mean())
        if only == "structure_weight":
            kept = [F.normalize(sees.keys(part)[0], dim=-1) for part in (composite, image)]
            expected += float((kept[0] @ kept[0].T - kept[1] @ kept[1].T).square().mean())
        if only == "sparsity_weight":
            expected += 0.01 * float(sparsity(opacity))
        expected *= 0.7
        if subject:
            seen = F.interpolate(sees.relevance(image, subject), size=(32, 32), mode="bilinear")
            expected += 10 * 0.25 * float((opacity - seen).square().mean())
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def trained(
    model, sees, row: Asked = CAT, **parameters: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The guidance image, and the layer's colours and opacity."""
    one = scene(model, sees, row, **parameters)
    with torch.no_grad():
        image = model.pixels(one.x0).clamp(-1, 1)
    return (image, *methods.get("text2live").layers(one, image))  # type: ignore[attr-defined]


def test_training_brings_the_composite_to_the_text(model, sees):
    told = []
    for steps in (1, 12):
        found = trained(model, sees, optimiser_steps=steps, learning_rate=0.02, cutouts=2)
        told.append(float(sees.images(over(*found)) @ sees.text(CAT.prompt)))
    assert told[1] > told[0] + 0.05


def test_held_to_nothing_but_sparsity_the_layer_vanishes(model, sees):
    none = {"clip_weight": 0.0, "structure_weight": 0.0, "sparsity_weight": 1000.0, "cutouts": 1}
    seen = []
    for steps in (1, 10):
        told = {"optimiser_steps": steps, "learning_rate": 0.05, **none}
        found = trained(model, sees, replace(CAT, source_prompt=""), **told)
        seen.append(float(found[2].mean()))
    assert seen[1] < 0.3 * seen[0]


def test_the_learning_rate_decays(model, sees, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda s: rates.append(s.param_groups[0]["lr"]) or step(s)
    )
    monkeypatch.setattr(text2live, "DECAY", 0.5)
    monkeypatch.setattr(text2live, "LEAST", 0.2)
    trained(model, sees, optimiser_steps=4, learning_rate=0.01, cutouts=1)
    assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.002])


@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_what_the_layer_changes_is_added_to_the_latents(model, monkeypatch, opacity):
    method = methods.get("text2live")
    layer = torch.full((1, 3, 32, 32), 0.3), torch.full((1, 1, 32, 32), opacity)
    monkeypatch.setattr(type(method), "layers", lambda self, scene, images: layer)
    given = batch(model, "text2live", [CAT])
    found, x0 = made("text2live", given), given.guidance.x0
    if opacity == 0:
        assert found.equal(x0)
    with torch.no_grad():
        image = model.pixels(x0).clamp(-1, 1)
        both = torch.cat([image, layer[0] if opacity else image])
        before, after = model.vae.encode(both).latent_dist.mean * model.vae.config.scaling_factor
    assert (found[0] - (x0[0] + after - before)).abs().max() < 1e-4


def test_without_a_step_there_is_no_layer(model):
    given = batch(model, "text2live", [CAT], optimiser_steps=0)
    assert made("text2live", given).equal(given.guidance.x0)


def test_rows_do_not_know_each_other(model):
    rows = [CAT, BOAT, replace(CAT, seed=7), replace(CAT, parameters={"subject": "red"})]
    # Slowly: the first steps of Adam make much of a last bit, of which alone and together differ.
    few = {**FEW, "learning_rate": 1e-5}
    given = batch(model, "text2live", rows, (1, 2), [0, 1, 0, 0], **few)
    do_not_know_each_other("text2live", given)
    cost = methods.get("text2live").cost(Sampling(4), given.parameters)
    assert (cost.decodes, cost.translated, given.unet.evaluations) == (0, 0, 0)
