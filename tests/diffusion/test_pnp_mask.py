"""The method `pnp-mask`: from pictures, prompts and words to pictures, masks and their cost."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pnp_batch.batches import Place
from pnp_batch.diffusion.sampling import SOURCE_GUIDANCE_SCALE
from pnp_batch.engine import Engine
from pnp_batch.errors import InvalidConfig
from pnp_batch.flops import unet_flops
from pnp_batch.methods import get
from pnp_batch.models import StableDiffusion, find
from pnp_batch.origins import Row
from pnp_batch.parameters import resolved
from pnp_batch.spending import branches
from pnp_batch.steps import Sampling
from pnp_batch.world import draw, random_spec
from tests import masked_reference, reference, tiny

STEPS = 3
METHOD = get("pnp-mask")
GIVEN = {"pnp_f_t": 1.0, "pnp_attn_t": 0.7, "mask_threshold": 0.5}
PROMPT, SOURCE = "a red cat at sea", "my red dog on ice"


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return StableDiffusion(find(str(tiny_model_dir("sd2"))))


def row(image: int | None = 1, subject: str = "", place: Place | None = None, **given) -> Row:
    more = {name: given.pop(name) for name in ("source_prompt", "prompt") if name in given}
    values = resolved(METHOD, {**GIVEN, **given})
    return Row(
        row_id=f"{image} {subject} {more}",
        guidance=f"{image}",
        pixels=None
        if image is None
        else draw(random_spec(Random(image)), resolution=64).image.resize((32, 32)),
        method="pnp-mask",
        place=place or Place(1, 1, 0, 0),
        seed=5,
        parameters={n: v for n, v in values.items() if n != "subject"},
        own={"subject": subject},
        **{"prompt": PROMPT, **more},
    )


def engine(model, steps=STEPS, **more):
    return Engine(model, sampling=Sampling(steps, **more), resolution=32)


def tokens(prompt: str, *words: str) -> list[int]:
    """Positions of words: each letter is a token, behind the one that begins a text."""
    found, at = [], 1
    for word in prompt.split():
        found += range(at, at + len(word)) if word in words else []
        at += len(word)
    return found


def by_hand(model, one: Row, text: str, source: list[int], target: list[int]):
    """The reference's picture and the means of its masks."""
    unet, embed = model.unet, lambda prompt: model.text(prompt)[None]
    noise = reference.noise_schedule(model.files.configs["scheduler"], STEPS)
    if one.pixels is None:
        drawn = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(one.seed))
        own = embed(one.source_prompt), embed("")
        _, trajectory = reference.sample(unet, drawn, *own, SOURCE_GUIDANCE_SCALE, noise)
    else:
        x0 = model.encode(one.pixels)[None]
        trajectory = reference.invert(unet, x0, embed(one.source_prompt), noise)
    shares = [one.parameters[name] for name in ("pnp_f_t", "pnp_attn_t")]
    edit = reference.Edit(embed(one.prompt), embed(""), one.guidance_scale, *shares)
    subject = masked_reference.Subject(embed(text), source, target, 0.5)
    x, masks = masked_reference.translate(
        unet,
        trajectory,
        embed(one.source_prompt),
        edit,
        subject,
        one.parameters["mask_mode"],
        noise,
    )
    means = [sum(of) / len(of) for of in zip(*masks, strict=True)]
    return np.asarray(model.decode(x[0])).astype(int), means


CASES = {
    "named": (row(subject="cat dog", source_prompt=SOURCE), SOURCE, ["dog"], ["cat"]),
    "common": (row(source_prompt=SOURCE, mask_mode="both"), SOURCE, ["red"], ["red"]),
    "all words": (row(), PROMPT, ["red", "cat", "sea"], ["red", "cat", "sea"]),
    "generated": (row(None, "red", source_prompt=SOURCE), SOURCE, ["red"], ["red"]),
    "in one prompt alone": (row(subject="cat", source_prompt=SOURCE), SOURCE, [], ["cat"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_the_reference_of_its_picture_prompts_and_subject(model, name):
    one, text, source, target = CASES[name]
    (outcome,) = engine(model).translate([one])
    picture, masks = by_hand(model, one, text, tokens(text, *source), tokens(one.prompt, *target))
    assert np.abs(np.asarray(outcome.image).astype(int) - picture).max() <= 1
    assert list(outcome.extras) == ["source mask", "target mask"]
    for found, expected in zip(outcome.extras.values(), masks, strict=True):
        assert (found.dtype, found.shape) == (np.uint8, (8, 8))
        assert np.abs(found.astype(float) - 255 * expected.numpy()).max() <= 1
    assert {p.size for p in outcome.pictures().values()} == {(32, 32)}


def test_rows_of_one_batch_have_each_their_own_words_and_masks(model):
    told = [(1, "cat"), (1, "red"), (2, "cat"), (2, "sea")]
    rows = [
        row(image, subject, Place(2, 2, k // 2, k % 2), source_prompt=[SOURCE, ""][image - 1])
        for k, (image, subject) in enumerate(told)
    ]
    together = {outcome.row.row_id: outcome for outcome in engine(model).translate(rows)}
    assert len(together) == len(rows)
    for one in rows:
        (alone,) = engine(model).translate([replace(one, place=Place(1, 1, 0, 0))])
        found = together[one.row_id]
        for a, b in (
            (alone.image, found.image),
            *zip(alone.pictures().values(), found.pictures().values(), strict=True),
        ):
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1
    masks = [outcome.extras["target mask"].tobytes() for outcome in together.values()]
    assert len(set(masks)) == len(masks)


def test_rows_that_are_left_out_show_nothing_and_take_nobodys_masks(model):
    place = Place(2, 2, 1, 1)
    (outcome,) = engine(model).translate([row(2, "cat", place)])
    (alone,) = engine(model).translate([row(2, "cat")])
    assert np.array_equal(outcome.extras["source mask"], alone.extras["source mask"])


@pytest.mark.parametrize("mode", ["foreground", "background", "both"])
@pytest.mark.parametrize(
    ("f", "attn", "steps", "every"), [(0.8, 0.5, 5, 1), (0.2, 0.8, 5, 2), (0.0, 0.0, 2, 1)]
)
def test_cost_is_what_is_evaluated(model, mode, f, attn, steps, every):
    given = {"pnp_f_t": f, "pnp_attn_t": attn, "mask_mode": mode}
    rows = [row(1, subject, Place(1, 2, 0, k), **given) for k, subject in enumerate(("cat", "sea"))]
    own = engine(model, steps, deep_every=every)
    own.prepare(rows)  # inverts
    before = own.unet.evaluations
    outcomes = list(own.translate(rows))
    assert all(outcome.image is not None for outcome in outcomes)
    cost = METHOD.cost(Sampling(steps, deep_every=every), rows[0].parameters)
    assert cost == METHOD.cost(Sampling(steps), rows[0].parameters)  # with whole steps alone
    assert cost.inversion
    assert own.unet.evaluations - before == cost.guidance + len(rows) * cost.row
    injected = int(steps * max(f, attn))
    assert (cost.guidance, cost.row) == (injected, 2 * steps + injected)
    assert [bool(outcome.extras) for outcome in outcomes] == [injected > 0] * 2


def flops(model, **given):
    """Those of a row: spent, and counted."""
    one, own = row(1, "cat", **given), engine(model)
    own.prepare([one])
    for text in ("", PROMPT):
        model.text(text)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        list(own.translate([one]))
    with FlopCounterMode(display=False) as decoding, sdpa_kernel(SDPBackend.MATH):
        model.decode(torch.zeros(4, tiny.SIDE, tiny.SIDE))
    cost = METHOD.cost(Sampling(STEPS), one.parameters)
    counted = sum(branches(cost, unet_flops({**model.unet.config}, tiny.SIDE, tiny.TOKENS)))
    return counter.get_total_flops() - decoding.get_total_flops(), counted


@pytest.mark.parametrize("mode", ["foreground", "background", "both"])
def test_flops_are_nearly_those_that_are_spent(model, mode):
    """But for what the maps of each layer take, and QK^T where it is computed twice."""
    spent, counted = flops(model, mask_mode=mode)
    assert spent == pytest.approx(counted, rel=0.08)
    fewer, counted_fewer = flops(model, mask_mode=mode, pnp_attn_layers="11")
    assert spent - fewer == pytest.approx(counted - counted_fewer, rel=0.3)


def test_bad_layers_and_modes_are_refused():
    with pytest.raises(InvalidConfig, match="pnp_attn_layers"):
        resolved(METHOD, {"pnp_attn_layers": "0-11"})
    with pytest.raises(InvalidConfig, match="mask_mode"):
        resolved(METHOD, {"mask_mode": "inside"})
    assert METHOD.exact_steps
