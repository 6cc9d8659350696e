"""DiffuseIT against a sampler and losses written out, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pnp_batch import methods
from pnp_batch.diffusion import guide
from pnp_batch.diffusion.critic import cut_outs
from pnp_batch.steps import Sampling
from tests import reference
from tests.guided.scene import BOAT, CAT, alone, batch, far, made

STEPS = 4


@pytest.fixture
def few(monkeypatch):
    """The first step is taken twice."""
    monkeypatch.setattr(methods.get("diffuseit").__class__.__module__ + ".RESAMPLINGS", 2)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class ByHand:
    """One row: ancestral sampling in the variance-preserving form of DDPM, with alpha and beta."""

    def __init__(self, model, sees, given, contrast: float, token: float, outside: float) -> None:
        self.model, self.sees, self.given = model, sees, given
        self.noise = reference.noise_schedule(model.files.configs["scheduler"], STEPS)
        self.weights = (contrast, token, outside)
        self.row, self.x0 = given.rows[0], given.guidance.x0
        self.dice = torch.Generator().manual_seed(self.row.seed ^ 0x51EE5)
        image = model.pixels(self.x0)
        self.keys = unit(sees.keys(image)[0])
        self.token = self.class_token(image)
        target = sees.text(self.row.prompt) + 0.2 * sees.images(image)[0]
        if self.row.source_prompt:
            target = target - 0.4 * sees.text(self.row.source_prompt)
        self.target = unit(target)

    def class_token(self, image):
        last = self.sees.hidden(image)[-1][0, 0]
        return (last - last.mean()) / (last.var(unbiased=False) + 1e-5).sqrt()

    def loss(self, x, x0, ab: float, *, early: bool):
        given, sees = self.given.parameters, self.sees
        fac = math.sqrt(1 - ab)
        image = self.model.pixels(x0 * fac + x * (1 - fac))
        views = cut_outs(image, sees.side, [self.dice], given["cutouts"], smallest=0.9)
        loss = -given["clip_weight"] * (sees.images(views) @ self.target).mean()
        keys = unit(sees.keys(image)[0])
        ssim = (keys @ keys.T - self.keys @ self.keys.T).square().mean()
        loss = loss + given["structure_weight"] * ssim
        scores = keys @ self.keys.T / 0.07
        told = F.cross_entropy(scores, torch.arange(len(keys)))
        loss = loss + self.weights[0] * told
        loss = loss + self.weights[2] * (image - image.clamp(-1, 1)).square().mean()
        token = self.class_token(image)
        if early:
            loss = loss - self.weights[1] * (token - self.token).square().mean()
        self.token = token.detach()
        return loss

    def step(self, x, index: int):
        t = self.noise.timesteps[index]
        s = self.noise.timesteps[index + 1] if index + 1 < STEPS else None
        ab, below = self.noise.at(t), self.noise.at(s)
        x = x.detach().requires_grad_()
        text = self.model.text("").clone()[None]
        eps = self.model.unet(x, t, text).sample
        x0 = (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
        loss = self.loss(x, x0, ab, early=index < STEPS / 2)
        (slope,) = torch.autograd.grad(loss, x)
        alpha, beta = ab / below, 1 - ab / below
        mean = (x - beta / math.sqrt(1 - ab) * eps) / math.sqrt(alpha)  # DDPM, eq. 11
        variance = beta * (1 - below) / (1 - ab)
        moved = (mean - variance * slope).detach()
        if s is None:
            return moved
        return moved + math.sqrt(variance) * torch.randn(x.shape[1:], generator=self.dice)

    def sampled(self, first: int):
        ab = self.noise.at(self.noise.timesteps[first])
        x = math.sqrt(ab) * self.x0 + math.sqrt(1 - ab) * self.given.noise
        x = self.step(x, first)
        alpha = ab / self.noise.at(self.noise.timesteps[first + 1])
        again = torch.randn(x.shape[1:], generator=self.dice)
        x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * again
        for index in range(first, STEPS):
            x = self.step(x, index)
        return x


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("row", "clip", "structure", "contrast", "token", "outside"),
    [
        (CAT, 0, 0, 0, 0, 0),
        (replace(BOAT, source_prompt=""), 40, 0, 0, 0, 0),
        (CAT, 0, 60, 0, 30, 0),
        (BOAT, 20, 20, 5, 10, 50),
    ],
)
def test_a_row_is_the_sampler_written_out(
    model, sees, monkeypatch, row, clip, structure, contrast, token, outside
):
    monkeypatch.setattr(guide, "CONTRAST", float(contrast))
    monkeypatch.setattr(guide, "CLASS_TOKEN", float(token))
    monkeypatch.setattr(guide, "RANGE", float(outside))
    weights = {"clip_weight": clip, "structure_weight": structure}
    given = batch(model, "diffuseit", [row], strength=0.75, cutouts=2, **weights)
    found = made("diffuseit", given)
    expected = ByHand(model, sees, given, contrast, token, outside).sampled(first=1)
    assert far(found, expected) < 1e-3
    if clip or structure or token:
        plain = ByHand(model, sees, given, 0, 0, 0)
        plain.given = replace(given, parameters={**given.parameters, **dict.fromkeys(weights, 0)})
        assert far(found, plain.sampled(first=1)) > 1e-2


@pytest.mark.usefixtures("few")
def test_pictures_come_nearer_to_the_text(model, sees):
    told = []
    for weight in (0.0, 300.0):
        given = batch(
            model,
            "diffuseit",
            [CAT],
            clip_weight=weight,
            structure_weight=0.0,
            cutouts=2,
        )
        found = made("diffuseit", given)
        with torch.no_grad():
            told.append(float(sees.images(model.pixels(found)) @ sees.text(CAT.prompt)))
    assert told[1] > told[0] + 0.02


def test_strength_0_is_the_reconstruction_of_the_vae(model):
    given = batch(model, "diffuseit", [CAT], strength=0.0)
    assert made("diffuseit", given).equal(given.guidance.x0)
    assert methods.get("diffuseit").cost(Sampling(STEPS), given.parameters).translated == 0


@pytest.mark.usefixtures("few")
def test_rows_do_not_know_each_other(model):
    rows = [CAT, BOAT, replace(CAT, seed=7)]
    weights = {"clip_weight": 50.0, "structure_weight": 50.0, "cutouts": 2}
    given = batch(model, "diffuseit", rows, (1, 2), [0, 1, 0], strength=0.5, **weights)
    found = made("diffuseit", given)
    cost = methods.get("diffuseit").cost(Sampling(STEPS), given.parameters)
    assert given.unet.evaluations == 3 * cost.translated == 3 * 3
    assert cost.decodes == cost.gradients == cost.translated
    for n in range(3):
        assert far(found[[n]], made("diffuseit", alone(given, n))) < 1e-3
    assert far(found[[0]], found[[2]]) > 0.1


@pytest.mark.usefixtures("few")
def test_the_same_row_gives_the_same_bits(model):
    given = batch(model, "diffuseit", [CAT], strength=0.5, cutouts=1)
    assert made("diffuseit", given).equal(made("diffuseit", given))
