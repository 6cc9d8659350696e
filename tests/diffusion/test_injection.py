"""Injection: hooks that leave no trace, sites that must fire, and nothing computed in vain."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F

from pnp_batch.diffusion.injection import InjectionNotFired, injected
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidModel
from tests import tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, both_schedules, far, latents, rows, texts

STEPS = 2
OWNER = torch.tensor([0, 0])
HOOKS = [name for name in vars(torch.nn.Module()) if "hooks" in name]


def hooks(unet):
    """Everything that is hooked to any module, and every attribute that a hook could hide in."""
    return {
        name: (
            [list(getattr(module, kind)) for kind in HOOKS],
            set(vars(module)),
            getattr(module, "processor", None),
        )
        for name, module in unet.module.named_modules()
    }


def plain(unet):
    with torch.no_grad():
        return unet.module(latents(2), 301, texts(2)).sample


def run(unet, feature_steps=STEPS, attention_steps=STEPS, owner=(0, 0)):
    schedule, _ = both_schedules(STEPS)
    return rows(STEPS, list(owner)).translated(unet, schedule, feature_steps, attention_steps)


# ------------------------------------------------------------------------------------ no trace


def test_hooks_are_there_inside_the_block_only(unet):
    before = hooks(unet)
    assert "_forward_hooks" in HOOKS
    assert "_forward_pre_hooks" in HOOKS
    with injected(unet.sites, OWNER):
        assert hooks(unet) != before
    assert hooks(unet) == before


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_a_translation_leaves_the_unet_as_it_was(unets, layout):
    unet = unets[layout]
    before, output = hooks(unet), plain(unet)
    first = run(unet)
    assert hooks(unet) == before
    assert torch.equal(plain(unet), output)
    assert torch.equal(run(unet), first)


def failing(monkeypatch, module, call):
    """Makes a module raise at its call number `call`, counted from 0."""
    calls, forward = iter(range(call + 1)), module.forward

    def forward_or_fail(*args, **kwargs):
        if next(calls) == call:
            raise RuntimeError("out of luck")
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", forward_or_fail)


@pytest.mark.parametrize(
    ("branch", "call"),
    [("guidance", 0), ("translated", 1), ("guidance", 2), ("translated", 3)],
)
@pytest.mark.parametrize("where", ["before the first site", "between sites"])
def test_an_exception_inside_the_unet_comes_out_and_leaves_no_trace(
    unet, monkeypatch, branch, call, where
):
    before, output = hooks(unet), plain(unet)
    blocks = {
        "before the first site": unet.module.mid_block,
        "between sites": unet.module.up_blocks[2].resnets[0],
    }
    with monkeypatch.context() as patch:
        failing(patch, blocks[where], call)
        with pytest.raises(RuntimeError, match="out of luck"):
            run(unet)
    assert hooks(unet) == before
    assert torch.equal(plain(unet), output)


def test_after_an_exception_the_next_translation_is_right(unet, monkeypatch):
    expected = run(unet)
    with monkeypatch.context() as patch:
        failing(patch, unet.module.up_blocks[3].resnets[1], 1)
        with pytest.raises(RuntimeError, match="out of luck"):
            run(unet)
    assert torch.equal(run(unet), expected)


def test_a_translation_while_another_exception_is_handled_is_right(unet):
    expected, before = run(unet), hooks(unet)
    try:
        with injected(unet.sites, OWNER):
            raise KeyError("first")
    except KeyError:
        assert torch.equal(run(unet), expected)
        with pytest.raises(ValueError, match="second"), injected(unet.sites, OWNER):
            raise ValueError("second")  # noqa: B904 - while the first is being handled
    assert hooks(unet) == before


# ---------------------------------------------------------------------------------- must fire


class Bypass:
    """Self-attention that multiplies by the weights of to_q or to_k without calling the module."""

    def __init__(self, bypassed, when=lambda x: True, twice=False):
        self.bypassed, self.when, self.twice = bypassed, when, twice

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        def project(name):
            module = getattr(attn, name)
            if name == self.bypassed and self.when(x):
                if self.twice:
                    module(x)
                    return module(x)
                return F.linear(x, module.weight, module.bias)
            return module(x)

        q, k, v = (
            project(name).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for name in ("to_q", "to_k", "to_v")
        )
        return attn.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


BYPASSES = {
    "everywhere": {},
    "in the guidance branch": {"when": lambda x: len(x) == 1},
    "in the translated branches": {"when": lambda x: len(x) == 4},
    "met twice": {"when": lambda x: len(x) == 4, "twice": True},
}


@pytest.mark.parametrize("how", BYPASSES)
@pytest.mark.parametrize(("site", "bypassed"), [(0, "to_q"), (5, "to_k"), (7, "to_q")])
def test_an_attention_site_not_met_just_once_is_an_error(unet, monkeypatch, how, site, bypassed):
    before = hooks(unet)
    with monkeypatch.context() as patch:
        processor = Bypass(bypassed, **BYPASSES[how])
        patch.setattr(unet.sites.attention[site], "processor", processor)
        with pytest.raises(InjectionNotFired, match="diffusers"):
            run(unet, 0, 1)
    assert hooks(unet) == before


def test_the_same_processor_that_calls_its_projections_is_no_error(unet, monkeypatch):
    expected = run(unet)
    with monkeypatch.context() as patch:
        patch.setattr(unet.sites.attention[0], "processor", Bypass(bypassed=None))
        assert far(run(unet), expected) < TOLERANCE


@pytest.mark.parametrize("attention_steps", [0, 1])
def test_a_feature_site_that_is_not_met_is_an_error(unet, monkeypatch, attention_steps):
    (block,), before = unet.sites.features, hooks(unet)
    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", lambda x, temb: block.conv_shortcut(x))
        with pytest.raises(InjectionNotFired):
            run(unet, 1, attention_steps)
    assert hooks(unet) == before


def test_projections_fused_after_the_sites_were_found_are_an_error():
    unet = UNet(tiny.new_unet("sd1"))
    unet.module.fuse_qkv_projections()
    with pytest.raises(InjectionNotFired):
        run(unet)


def test_nothing_has_to_fire_once_injection_is_over(unet, monkeypatch):
    expected = run(unet, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(unet.sites.attention[0], "processor", Bypass("to_q"))
        assert far(run(unet, 0, 0), expected) < TOLERANCE


def test_a_site_that_never_fires_is_a_fault_of_the_model_not_of_a_row():
    assert issubclass(InjectionNotFired, InvalidModel)


# ------------------------------------------------------------------------- nothing in vain


@pytest.fixture
def seen(unet, monkeypatch):
    """Which modules without children ran in each UNet evaluation, in order, with how many rows."""
    evaluations = []

    def watch(name, module):
        forward = module.forward

        def noted(*args, **kwargs):
            if name == "time_embedding.linear_1":  # the first one of all
                evaluations.append([])
            evaluations[-1].append((name, len(args[0])))
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", noted)

    for name, module in unet.module.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            watch(name, module)
    return evaluations


def rows_by_module(evaluation):
    found = defaultdict(list)
    for name, count in evaluation:
        if not name.startswith("time_embedding"):  # one timestep for all rows
            found[name].append(count)
    return found


GUIDANCE, TRANSLATED = 2, 6  # rows of two images, and of both branches of three rows
BRANCH = {f"up_blocks.1.resnets.1.{part}" for part in ("conv1", "conv2", "time_emb_proj")}
PROJECTIONS = {
    f"up_blocks.{block}.attentions.{layer}.transformer_blocks.0.attn1.{part}"
    for block, layer in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    for part in ("to_q", "to_k")
}


@pytest.mark.parametrize(
    ("features", "attention", "last"),
    [
        (True, False, "up_blocks.1.resnets.1.conv2"),
        (False, True, "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_k"),
        (True, True, "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_k"),
    ],
)
def test_the_guidance_branch_runs_up_to_the_last_scheduled_site_and_no_further(
    unet, seen, features, attention, last
):
    run(unet, int(features), int(attention), owner=(0, 1, 1))
    assert seen[0][-1] == (last, GUIDANCE)
    names = [name for name, _ in seen[0]]
    assert names.count(last) == 1
    assert "conv_out" not in names
    assert all(counts == [GUIDANCE] for counts in rows_by_module(seen[0]).values())


@pytest.mark.parametrize("owner", [(0, 1, 1), (0, 1, 2)], ids=["uneven", "even"])
@pytest.mark.parametrize(
    ("features", "attention", "spared"),
    [(True, False, BRANCH), (False, True, PROJECTIONS), (True, True, BRANCH | PROJECTIONS)],
)
def test_what_is_injected_is_not_computed_and_everything_else_is(
    unet, seen, features, attention, spared, owner
):
    run(unet, int(features), int(attention), owner=owner)
    counts = rows_by_module(seen[1])
    computed = {name for name, found in counts.items() if sum(found)}
    assert computed == set(rows_by_module(seen[-1])) - spared
    assert all(counts[name] == [TRANSLATED] for name in computed)
    assert seen[1][-1] == ("conv_out", TRANSLATED)


@pytest.mark.parametrize("owner", [(0, 0), (1, 0), (0, 1, 0, 1)])
def test_attention_is_computed_once_for_all_rows_of_an_image(unet, monkeypatch, owner):
    asked = []
    attention = F.scaled_dot_product_attention

    def noted(query, key, value, **more):
        asked.append((len(query), value.shape[-1] // query.shape[-1]))
        return attention(query, key, value, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    run(unet, 0, 1, owner=owner)
    images, branches = len(set(owner)), 2 * len(owner) // len(set(owner))
    assert asked.count((images, branches)) == len(unet.sites.attention)


def test_a_processor_of_another_kind_keeps_its_own_way(unet, monkeypatch):
    expected = run(unet)
    with monkeypatch.context() as patch:
        for module in unet.sites.attention:
            patch.setattr(module, "processor", Bypass(bypassed=None))
        assert far(run(unet), expected) < TOLERANCE
        assert all(type(module.processor) is Bypass for module in unet.sites.attention)


def test_large_pictures_on_a_cpu_do_not_hold_all_probabilities(unet, monkeypatch):
    expected = run(unet)
    monkeypatch.setattr("pnp_batch.diffusion.attention.MOST_PROBABILITY_BYTES", 0)
    assert far(run(unet), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("feature_steps", "attention_steps", "branches"),
    [(0, 0, "tt"), (1, 0, "gtt"), (0, 2, "gtgt"), (2, 1, "gtgt"), (1, 1, "gtt")],
)
def test_the_guidance_branch_ends_with_the_last_injection(
    unet, seen, feature_steps, attention_steps, branches
):
    run(unet, feature_steps, attention_steps, owner=(0, 1, 1))
    which = {GUIDANCE: "g", TRANSLATED: "t"}
    assert (
        "".join(which[rows_by_module(evaluation)["conv_in"][0]] for evaluation in seen) == branches
    )
    if branches[-2:] == "tt":  # the last step is not injected: nothing is spared
        assert all(found == [TRANSLATED] for found in rows_by_module(seen[-1]).values())


def test_evaluations_count_every_row_that_went_in():
    unet = UNet(tiny.new_unet("sd1"))
    run(unet, 1, 1, owner=(0, 1, 1))
    assert unet.evaluations == GUIDANCE + 2 * TRANSLATED


def test_the_unet_computes_in_its_own_dtype_and_answers_in_float32(unet):
    half = UNet(copy.deepcopy(unet.module).bfloat16())
    output = half(latents(1), 301, EMPTY)
    assert output.dtype == torch.float32
    assert torch.equal(output, output.bfloat16().float())
    assert far(output, unet(latents(1), 301, EMPTY)) < 0.1
    translated = run(half)
    assert translated.dtype == torch.float32
    assert bool(torch.isfinite(translated).all())
