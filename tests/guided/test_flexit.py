"""FlexIT: its step, its three losses, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pnp_batch import methods
from pnp_batch.diffusion.critic import cut_outs
from pnp_batch.steps import Sampling
from tests.guided.scene import BOAT, CAT, batch, do_not_know_each_other, far, made


def clamped(raw: torch.Tensor) -> torch.Tensor:
    """Clamped to -1..1, with a slope of 1 but where a descent would lead further out."""
    outside = (raw > 1).float() - (raw < -1).float()
    shown = raw + (raw.clamp(-1, 1) - raw).detach()
    shown.register_hook(lambda slope: slope * (slope * outside >= 0))
    return shown


def by_hand(model, sees, given, steps: int, rate: float, weights=(1.0, 0.15, 0.05)) -> torch.Tensor:
    """The walk of one row, written out."""
    row, z0 = given.rows[0], given.guidance.x0
    dice = torch.Generator().manual_seed(row.seed ^ 0x51EE5)
    image0 = model.pixels(z0).clamp(-1, 1)
    unit0 = [h / h.norm(dim=-1, keepdim=True) for h in sees.hidden(image0)]
    target = sees.text(row.prompt) + 0.2 * sees.images(image0)[0]
    if row.source_prompt:
        target = target - 0.4 * sees.text(row.source_prompt)
    z = z0.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        image = clamped(model.pixels(z))
        views = cut_outs(image, sees.side, [dice], 1, smallest=0.9)
        told = -(sees.images(views)[0] * target).sum()
        unit = [h / h.norm(dim=-1, keepdim=True) for h in sees.hidden(image)]
        layers = [((a - b) ** 2).sum() / a.shape[1] for a, b in zip(unit, unit0, strict=True)]
        moved = ((z - z0) ** 2).sum(1).add(1e-12).sqrt().sum() / (z0**2).sum(1).sqrt().sum()
        kept = sum(layers) / len(layers)
        (weights[0] * told + weights[1] * kept + weights[2] * moved).backward()
        assert z.grad is not None
        z = z.detach() - rate * z0.norm() * z.grad / z.grad.norm()
    return z


@pytest.mark.parametrize("row", [CAT, replace(CAT, source_prompt="")])
@pytest.mark.parametrize("weights", [(1.0, 0.15, 0.05), (1.0, 3.0, 0.0), (1.0, 0.0, 3.0)])
def test_a_row_is_the_walk_written_out(model, sees, row, weights):
    names = ("clip_weight", "source_weight", "latent_weight")
    told = dict(zip(names, weights, strict=True))
    given = batch(model, "flexit", [row], optimiser_steps=2, learning_rate=0.05, **told)
    found = made("flexit", given)
    assert far(found, by_hand(model, sees, given, 2, 0.05, weights)) < 1e-3
    assert far(found, by_hand(model, sees, given, 2, 0.05, (1.0, 0.5, 0.5))) > 3e-3


def test_pictures_come_nearer_to_the_text(model, sees):
    given = batch(model, "flexit", [CAT], optimiser_steps=10, learning_rate=0.02)
    with torch.no_grad():
        before, after = (
            float(sees.images(model.pixels(z).clamp(-1, 1)) @ sees.text(CAT.prompt))
            for z in (given.guidance.x0, made("flexit", given))
        )
    assert after > before + 0.05


@pytest.mark.parametrize("still", [{"optimiser_steps": 0}, {"learning_rate": 0.0}])
def test_nothing_moves_without_steps_or_rate(model, still):
    given = batch(model, "flexit", [CAT], **{"optimiser_steps": 2, **still})
    assert made("flexit", given).equal(given.guidance.x0)


def test_without_weights_nothing_pulls(model):
    none = dict.fromkeys(("clip_weight", "source_weight", "latent_weight"), 0.0)
    given = batch(model, "flexit", [CAT], optimiser_steps=2, **none)
    assert made("flexit", given).equal(given.guidance.x0)


def test_rows_do_not_know_each_other(model):
    rows = [CAT, BOAT, replace(CAT, seed=7), replace(CAT, source_prompt="")]
    given = batch(model, "flexit", rows, (1, 2), [0, 1, 0, 0], optimiser_steps=1)
    do_not_know_each_other("flexit", given)
    cost = methods.get("flexit").cost(Sampling(4), given.parameters)
    assert (cost.decodes, cost.translated, given.unet.evaluations) == (1, 0, 0)
