"""VQGAN-CLIP: its objective falls, its limits hold, and rows know nothing of each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pnp_batch import methods
from pnp_batch.diffusion.critic import cut_outs
from pnp_batch.methods import guided
from pnp_batch.methods.vqgan_clip import VQGANCLIP
from pnp_batch.steps import Sampling
from tests.guided.scene import BOAT, CAT, batch, do_not_know_each_other, far, made

FEW = {"optimiser_steps": 2, "cutouts": 2}


def angle(model, sees, z, text: str) -> float:
    """The mean angle between many views of a picture and a text, in degrees."""
    with torch.no_grad():
        image = model.pixels(z).clamp(-1, 1)
        views = cut_outs(image, sees.side, [torch.Generator().manual_seed(9)], 64)
        return float((sees.images(views) @ sees.text(text)).clamp(-1, 1).acos().mean().rad2deg())


def test_views_come_nearer_to_the_text(model, sees):
    given = batch(model, "vqgan-clip", [CAT], optimiser_steps=16, cutouts=3)
    before = angle(model, sees, given.guidance.x0, CAT.prompt)
    found = made("vqgan-clip", given)
    assert angle(model, sees, found, CAT.prompt) < before - 5
    assert angle(model, sees, found, CAT.prompt) < angle(model, sees, found, BOAT.prompt)


def test_the_first_step_of_adam_is_the_learning_rate(model):
    given = batch(model, "vqgan-clip", [CAT], optimiser_steps=1, learning_rate=0.05, cutouts=2)
    moved = (made("vqgan-clip", given) - given.guidance.x0).abs()
    assert moved.max() < 0.0501
    assert moved.median() > 0.0499


@pytest.mark.parametrize(
    "still", [{"optimiser_steps": 0}, {"learning_rate": 0.0}, {"clip_weight": 0.0}]
)
def test_nothing_moves_without_steps_rate_or_weight(model, still):
    given = batch(model, "vqgan-clip", [CAT], **{**FEW, **still})
    assert made("vqgan-clip", given).equal(given.guidance.x0)


def test_the_source_weight_holds_the_latents(model):
    moved = []
    for weight in (0.0, 10.0, 1000.0):
        few = {"optimiser_steps": 8, "cutouts": 1, "source_weight": weight}
        given = batch(model, "vqgan-clip", [CAT], **few)
        moved.append(float((made("vqgan-clip", given) - given.guidance.x0).norm()))
    assert moved[0] > 1.05 * moved[1] > 1.1 * moved[2]


def test_rows_do_not_know_each_other(model):
    rows = [CAT, BOAT, replace(CAT, seed=7), CAT]
    given = batch(model, "vqgan-clip", rows, images=(1, 2), owner=[0, 1, 1, 1], **FEW)
    do_not_know_each_other("vqgan-clip", given)


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [2, 2]), (6, [2, 2, 2])])
def test_no_more_pictures_at_once_than_memory_is_meant_for(model, monkeypatch, rows, sizes):
    """Two of these, in parts of one size."""
    given = batch(model, "vqgan-clip", [replace(CAT, seed=n) for n in range(rows)], **FEW)
    whole = made("vqgan-clip", given)
    monkeypatch.setattr(guided, "TOGETHER", 32 * 32 * 2)
    seen, led = [], VQGANCLIP.led
    monkeypatch.setattr(
        VQGANCLIP, "led", lambda s, some: seen.append(len(some.rows)) or led(s, some)
    )
    assert far(made("vqgan-clip", given), whole) < 1e-3
    assert seen == sizes


def test_the_cost_is_a_decoding_a_step(model):
    given = batch(model, "vqgan-clip", [CAT], **FEW)
    made("vqgan-clip", given)
    cost = methods.get("vqgan-clip").cost(Sampling(4), given.parameters)
    assert (cost.decodes, cost.translated, cost.inversion) == (2, 0, False)
    assert given.unet.evaluations == 0
