"""Plug-and-Play with other decoder layers: against the reference, and what they cost."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pnp_batch.diffusion.sampling import Guidance, Prompts
from pnp_batch.diffusion.sites import find_sites
from pnp_batch.diffusion.unet import UNet
from pnp_batch.flops import unet_flops
from pnp_batch.layers import ATTENTION, FEATURES, parsed
from pnp_batch.methods import Batch, get
from pnp_batch.spending import branches
from pnp_batch.steps import Sampling
from tests import tiny
from tests.diffusion.scene import TOLERANCE, both_schedules, far, latents, rows

STEPS = 3
# Features, attention: fewer, more, others, the outermost, features behind attention.
CHOSEN = [
    ("4", "8-11"),
    ("4-11", "4-11"),
    ("0,2,7-9", "3,5"),
    ("11", "4,11"),
    ("8,11", "3-5"),
    ("2", "10"),
]


def chosen(f: str, attn: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return parsed("f", f), parsed("attn", attn)


def translated(unet, owner, every, **parameters):
    """What the method makes of some rows."""
    some = rows(STEPS, owner)
    schedule, _ = both_schedules(STEPS, deep_every=every)
    batch = Batch(
        unet,
        schedule,
        Guidance(some.trajectory, some.source, torch.tensor(some.owner)),
        Prompts(some.target, some.negative, torch.tensor(some.scale)),
        latents(len(owner)),
        parameters,
    )
    return get("pnp").translate(batch)


def asked(f, attn, f_t=0.7, attn_t=0.4):
    return {"pnp_f_layers": f, "pnp_attn_layers": attn, "pnp_f_t": f_t, "pnp_attn_t": attn_t}


@pytest.mark.parametrize(("f", "attn"), CHOSEN)
@pytest.mark.parametrize(
    ("f_t", "attn_t", "every", "owner"), [(0.7, 0.4, 1, [0, 1, 1]), (0.4, 1.0, 2, [0, 0])]
)
def test_other_layers_are_the_references(unet, f, attn, f_t, attn_t, every, owner):
    _, noise = both_schedules(STEPS)
    made = translated(unet, owner, every, **asked(f, attn, f_t, attn_t))
    by_hand = rows(STEPS, owner).by_hand(unet, noise, f_t, attn_t, chosen(f, attn), every)
    assert far(made, by_hand) < TOLERANCE


def test_each_layer_left_out_changes_the_result(unet):
    # In the first step, the encoder has met nothing yet that the guidance image's has not.
    schedule, _ = both_schedules(2, "v_prediction", timestep_spacing="trailing")
    one, every = rows(2, [0]), ((*range(12),), (*range(3, 12),))
    results = [one.translated(unet, schedule, 2, 2, find_sites(unet.module, *every))]
    for kind, layers in enumerate(every):
        for layer in layers:
            left = list(every)
            left[kind] = tuple(n for n in layers if n != layer)
            results.append(one.translated(unet, schedule, 2, 2, find_sites(unet.module, *left)))
    for n, a in enumerate(results):
        for b in results[:n]:
            assert far(a, b) > 10 * TOLERANCE


def test_the_guidance_branch_stops_at_the_last_scheduled_site(unet):
    """Whichever that is: nothing behind it is met."""
    for f, attn, last, beyond in (
        ("0", "3", "up_blocks.1.attentions.0", "up_blocks.1.resnets.1"),
        ("8", "3-5", "up_blocks.2.resnets.2", "up_blocks.2.attentions.2"),
    ):
        met = {last: 0, beyond: 0}

        def count(module, args, name, met=met):
            met[name] += len(args[0])

        with ExitStack() as stack:
            for name in met:
                module = unet.module.get_submodule(name)
                stack.callback(
                    module.register_forward_pre_hook(
                        lambda module, args, name=name: count(module, args, name)
                    ).remove
                )
            translated(unet, [0], 1, **asked(f, attn, 1.0, 1.0))
        assert met == {last: 3 * STEPS, beyond: 2 * STEPS}


def flops(f, attn, every):
    """Those of two rows of one image: spent, and counted."""
    unet, owner = UNet(tiny.new_unet("sd1")), [0, 0]
    parameters = asked(f, attn)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        translated(unet, owner, every, **parameters)
    cost = get("pnp").cost(Sampling(STEPS, deep_every=every), parameters)
    assert unet.evaluations == cost.guidance + len(owner) * cost.row
    guidance, row = branches(cost, unet_flops({**unet.module.config}, tiny.SIDE, tokens=6))
    return counter.get_total_flops(), guidance + len(owner) * row


@pytest.mark.parametrize(("f", "attn"), [("4", "4-11"), *CHOSEN])
@pytest.mark.parametrize("every", [1, 2])
def test_flops_and_evaluations_are_those_that_are_spent(f, attn, every):
    spent, counted = flops(f, attn, every)
    assert spent == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("4", "4-11"), ("4,11", "4-11")), (("4", "5"), ("11", "5")), (("4", "5"), ("4,7", "5"))],
)
@pytest.mark.parametrize("every", [1, 2])
def test_flops_tell_one_layer_from_another(one, other, every):
    """Where all else is the same, so that nothing else hides a difference."""
    (spent, counted), (spent_other, counted_other) = (flops(*own, every) for own in (one, other))
    assert spent != spent_other
    assert spent_other - spent == pytest.approx(counted_other - counted, rel=0.001)


def test_the_published_layers_are_the_default(unet):
    schedule, _ = both_schedules(STEPS)
    expected = rows(STEPS, [0]).translated(unet, schedule, 2, 1)
    assert (translated(unet, [0], 1, **asked("4", "4-11")) == expected).all()
    named = find_sites(unet.module, FEATURES, ATTENTION)
    assert (rows(STEPS, [0]).translated(unet, schedule, 2, 1, named) == expected).all()
