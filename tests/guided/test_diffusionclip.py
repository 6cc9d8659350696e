"""DiffusionCLIP: an untuned copy gives DDIM there and back; what tuning does to a copy."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pnp_batch.diffusion import finetuning
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import reconstruct
from pnp_batch.diffusion.unet import UNet
from pnp_batch.methods.diffusionclip import CHAIN, DiffusionCLIP
from pnp_batch.steps import Sampling
from tests import reference
from tests.guided.scene import BOAT, CAT, alone, batch, far

STEPS = 4
FEW = {"training_images": 2, "optimiser_steps": 2, "strength": 0.5}


@pytest.fixture(autouse=True)
def own_rate(model, monkeypatch):
    """The learning rate is meant for a denoiser of the tiny UNet's size, unless a test says so."""
    weights = sum(one.numel() for one in model.unet.parameters())
    monkeypatch.setattr(finetuning, "WEIGHTS", float(weights))
    monkeypatch.setitem(FEW, "learning_rate", 1e-3)


def there_and_back(model, x0, source: str, run: int, multiple: int = 1) -> torch.Tensor:
    """DDIM inversion to the first of the last `run` timesteps, and sampling back, written out."""
    noise = reference.noise_schedule(model.files.configs["scheduler"], STEPS)
    noise = replace(noise, timesteps=noise.timesteps[STEPS - run :])
    text = model.text(source)[None]
    x = reference.invert(model.unet, x0, text, noise, multiple)[noise.timesteps[0]]
    for t, s in zip(noise.timesteps, [*noise.timesteps[1:], None], strict=True):
        output, _ = reference.evaluate(model.unet, x, t, text)
        x = reference.ddim(output, x, noise.at(t), noise.at(s), noise.prediction)
    return x


@pytest.mark.parametrize(("strength", "multiple"), [(0.5, 1), (0.75, 2), (1.0, 1), (0.0, 1)])
def test_without_training_it_is_ddim_there_and_back(model, strength, multiple):
    told = {"optimiser_steps": 0, "strength": strength, "inversion_steps": multiple * STEPS}
    given = batch(model, "diffusionclip", [CAT, BOAT], (1, 2), [0, 1], **told)
    found = DiffusionCLIP().translate(given)
    run = int(STEPS * strength)
    for n, row in enumerate(given.rows):
        x0 = given.guidance.x0[[n]]
        expected = there_and_back(model, x0, row.source_prompt, run, multiple) if run else x0
        assert far(found[[n]], expected) < 3e-4  # up and down: twice the steps
    cost = DiffusionCLIP().cost(given.schedule.sampling, given.parameters)
    assert given.unet.evaluations == 2 * (cost.guidance_whole + cost.translated)
    assert cost.trained == 0


def loss_of(model, sees, unet, schedule, x0, row, parameters) -> float:
    """The loss of the paper on some pictures, sampled through all steps of a schedule."""
    text = model.text(row.source_prompt).expand(len(x0), -1, -1)
    start = invert(UNet(model.unet), x0, text, schedule)[0]
    with torch.no_grad():
        image, back = (
            model.pixels(x).clamp(-1, 1) for x in (x0, reconstruct(unet, start, text, schedule))
        )
        change = sees.text(row.prompt) - sees.text(row.source_prompt)
        cosine = F.cosine_similarity(sees.images(back) - sees.images(image), change[None])
        told = -((1 + cosine) / 2).log().mean()
        kept = (back - image).abs().mean()
    return float(parameters["clip_weight"] * told + parameters["source_weight"] * kept)


def tuned(given, row, **parameters):
    schedule = finetuning.last_steps(given.schedule, 2)
    x0 = finetuning.training_pictures(given.unet, given.model, given.schedule, row.prompt, 2)
    texts = (row.source_prompt, row.prompt)
    told = {**given.parameters, **parameters, "chain": CHAIN}
    copy = finetuning.finetuned(given.unet, given.model, schedule, x0, texts, told)
    return copy, schedule, x0, told


def test_the_loss_of_the_paper_falls(model, sees):
    given = batch(model, "diffusionclip", [CAT], **FEW)
    weights = deepcopy(model.unet.state_dict())
    copy, schedule, x0, told = tuned(given, CAT, optimiser_steps=6)
    before, after = (
        loss_of(model, sees, unet, schedule, x0, CAT, told) for unet in (given.unet, copy)
    )
    assert after < before - 0.05
    # The model itself is as it was, and neither takes gradients any more.
    assert all(value.equal(weights[name]) for name, value in model.unet.state_dict().items())
    assert not any(p.requires_grad for u in (copy.module, model.unet) for p in u.parameters())


def test_the_first_step_descends_the_loss_written_out(model, sees):
    """With one picture and one step, Adam moves each weight by the rate against its gradient."""
    given = batch(model, "diffusionclip", [CAT], **FEW)
    told = {"optimiser_steps": 1, "learning_rate": 1e-4, "clip_weight": 2.0, "source_weight": 5.0}
    copy, _, x0, _ = tuned(given, CAT, **told)
    by_hand = deepcopy(model.unet).requires_grad_(True)
    noise = reference.noise_schedule(model.files.configs["scheduler"], STEPS)
    text = model.text(CAT.source_prompt).clone()[None]
    last = replace(noise, timesteps=noise.timesteps[2:])
    x = reference.invert(model.unet, x0[:1], text, last)[last.timesteps[0]].clone()
    for t, s in zip(last.timesteps, [last.timesteps[1], None], strict=True):
        x = reference.ddim(by_hand(x, t, text).sample, x, noise.at(t), noise.at(s), "epsilon")
    raw, image = model.pixels(x), model.pixels(x0[:1]).clamp(-1, 1).detach()
    outside = (raw > 1).float() - (raw < -1).float()
    back = raw + (raw.clamp(-1, 1) - raw).detach()
    back.register_hook(lambda slope: slope * (slope * outside >= 0))
    change = sees.text(CAT.prompt) - sees.text(CAT.source_prompt)
    cosine = F.cosine_similarity(sees.images(back) - sees.images(image), change[None])
    (2.0 * -((1 + cosine) / 2).log().sum() + 5.0 * (back - image).abs().mean()).backward()
    agree = []
    pairs = zip(copy.module.parameters(), model.unet.parameters(), strict=True)
    for (new, old), own in zip(pairs, by_hand.parameters(), strict=True):
        assert own.grad is not None
        clear = own.grad.abs() > 1e-5
        assert (new - old).abs().max() < 1.1e-4
        agree.append((((old - new) > 0) == (own.grad > 0))[clear])
    told_apart = torch.cat(agree)
    assert len(told_apart) > 1000
    assert told_apart.float().mean() > 0.999


def test_the_learning_rate_falls_with_the_weights_and_rises_with_the_passes(model, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda s: rates.append(s.param_groups[0]["lr"]) or step(s)
    )
    weights = sum(one.numel() for one in model.unet.parameters())
    monkeypatch.setattr(finetuning, "WEIGHTS", 3.0 * weights)
    tuned(batch(model, "diffusionclip", [CAT], **FEW), CAT, optimiser_steps=5)
    assert rates == pytest.approx([3e-3, 3e-3, 3.9e-3, 3.9e-3, 5.07e-3])


def test_training_pictures_are_samples_of_the_text(model):
    given = batch(model, "diffusionclip", [CAT], **FEW)
    found = finetuning.training_pictures(given.unet, model, given.schedule, "a cat", 2)
    again = finetuning.training_pictures(given.unet, model, given.schedule, "a cat", 3)
    other = finetuning.training_pictures(given.unet, model, given.schedule, "a dog", 2)
    assert far(found, again[:2]) < 1e-4
    assert far(found[:1], found[1:]) > 0.1
    assert far(found, other) > 0.1
    noise = reference.noise_schedule(model.files.configs["scheduler"], STEPS)
    start = torch.randn(
        4, 8, 8, generator=torch.Generator().manual_seed(finetuning._seed("a cat", 1))
    )
    text, empty = model.text("a cat")[None], model.text("")[None]
    expected, _ = reference.sample(model.unet, start[None], text, empty, 5.0, noise)
    assert far(found[1:], expected) < 1e-4


def test_a_short_chain_spans_the_steps(model):
    given = batch(model, "diffusionclip", [CAT], steps=20)
    last = finetuning.last_steps(given.schedule, 15)
    chain = finetuning._spread(last, CHAIN)
    assert len(chain.timesteps) == CHAIN
    assert (chain.timesteps[0], chain.timesteps[-1]) == (701, 1)
    assert last.timesteps[0] == 701
    gaps = [a - b for a, b in zip(chain.timesteps, chain.timesteps[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 50
    assert finetuning._spread(finetuning.last_steps(given.schedule, 1), CHAIN).steps == 1


def test_texts_share_a_copy_and_rows_do_not_know_each_other(model):
    method = DiffusionCLIP()
    rows = [CAT, replace(BOAT, source_prompt=CAT.source_prompt), replace(CAT, seed=9), CAT]
    given = batch(model, "diffusionclip", rows, (1, 2), [0, 0, 0, 1], **FEW)
    found = method.translate(given)
    cost = method.cost(Sampling(STEPS), given.parameters)
    shared = 2 * cost.guidance_whole + 4 * cost.translated
    assert given.unet.evaluations == shared + 2 * cost.trained
    assert cost.trained_gradients == 2 * 2
    # The seed plays no part; picture and target text do.
    assert far(found[[0]], found[[2]]) < 1e-4
    assert far(found[[0]], found[[1]]) > 1e-2
    assert far(found[[0]], found[[3]]) > 1e-2
    given.unet.evaluations = 0
    assert method.translate(given).equal(found)
    assert given.unet.evaluations == shared
    fresh = DiffusionCLIP().translate(alone(given, 1))
    assert far(found[[1]], fresh) < 1e-3


def test_copies_are_of_a_model_and_of_parameters_and_not_kept_for_ever(model, monkeypatch):
    monkeypatch.setattr("pnp_batch.methods.diffusionclip.KEPT", 1)
    method = DiffusionCLIP()
    one = {**FEW, "training_images": 1, "optimiser_steps": 1}
    first = batch(model, "diffusionclip", [CAT], **one)
    faster = batch(model, "diffusionclip", [CAT], **{**one, "learning_rate": 1e-2})
    found = method.translate(first)
    assert far(method.translate(faster), found) > 1e-3
    kept = method._tuned[model.unet]
    assert len(kept) == 1
    assert method.translate(first).equal(found)
    assert len(kept) == 1
