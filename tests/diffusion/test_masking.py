"""Plug-and-Play in a mask, against the reference, and where it meets plain Plug-and-Play."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from pnp_batch.diffusion.injection import InjectionNotFired
from pnp_batch.diffusion.masking import Masking, Where, translate_masked
from pnp_batch.diffusion.sampling import Guidance, Injecting, Prompts
from pnp_batch.diffusion.sites import find_sites
from tests import masked_reference, reference
from tests.diffusion import scene
from tests.diffusion.scene import TOLERANCE, both_schedules, far, texts
from tests.diffusion.test_injection import Bypass, hooks
from tests.masked_reference import Subject

MODES = ("foreground", "background", "both")
STEPS = 3
OWNER = [0, 1, 1]
SCALES = [3.0, 5.0, 7.5]
# Of 6 tokens; half of the cells are above the threshold.
SOURCE, TARGET = [[1], [2, 3], [4]], [[0, 5], [1], [2]]
FORM = {"threshold": 0.5}


def masking(mode, count=3, source=SOURCE, target=TARGET, **form):
    return Masking(mode, texts(count, seed=7), source[:count], target[:count], **(form or FORM))


def made(unet, some, how, schedule, injecting):
    return translate_masked(
        unet,
        Guidance(some.trajectory, some.source, torch.tensor(some.owner)),
        Prompts(some.target, some.negative, torch.tensor(some.scale)),
        schedule,
        injecting,
        how,
    )


def by_hand(unet, some, how, noise, f, attn, layers=((4,), range(4, 12))):
    """What the reference makes of some rows, one by one, and their masks."""
    found = []
    for n, image in enumerate(some.owner):
        trajectory = dict(zip(noise.timesteps, some.trajectory[:, [image]], strict=True))
        edit = reference.Edit(some.target[[n]], some.negative[[n]], some.scale[n], f, attn, *layers)
        subject = Subject(
            how.text[[n]],
            how.source[n],
            how.target[n],
            how.threshold,
            how.dilation,
            how.softness,
        )
        found.append(
            masked_reference.translate(
                unet.module, trajectory, some.source[[image]], edit, subject, how.mode, noise
            )
        )
    return torch.cat([x for x, _ in found]), [masks for _, masks in found]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layout", "prediction", "f", "attn", "form"),
    [
        ("sd1", "epsilon", 0.7, 1.0, FORM),
        ("sd2", "v_prediction", 1.0, 0.4, {"threshold": 0.6, "dilation": 1, "softness": 0.8}),
    ],
)
def test_a_translation_and_its_masks_are_the_references(
    unets, mode, layout, prediction, f, attn, form
):
    unet, some = unets[layout], scene.rows(STEPS, OWNER, SCALES)
    schedule, noise = both_schedules(STEPS, prediction, timestep_spacing="trailing")
    how = masking(mode, **form)
    result = made(unet, some, how, schedule, Injecting(int(STEPS * f), int(STEPS * attn)))
    expected, masks = by_hand(unet, some, how, noise, f, attn)
    assert far(result.latents, expected) < TOLERANCE
    for n, steps in enumerate(masks):
        for k, (source, target) in enumerate(steps):
            assert far(result.source[k, n, 0], source) < TOLERANCE
            assert far(result.target[k, n, 0], target) < TOLERANCE
    assert result.source.shape == result.target.shape == (STEPS, len(OWNER), 1, 8, 8)
    assert 0.1 < float(result.source.mean()) < 0.9
    assert torch.equal(result.source[0], result.target[0])
    assert not torch.equal(result.source[1], result.target[1])


def test_other_layers_are_the_references(unet):
    some = scene.rows(STEPS, OWNER, SCALES)
    schedule, noise = both_schedules(STEPS)
    layers = (3, 11), (3, 9)
    injecting = Injecting(2, 2, find_sites(unet.module, *layers))
    result = made(unet, some, masking("foreground"), schedule, injecting)
    expected, _ = by_hand(unet, some, masking("foreground"), noise, 0.7, 0.7, layers)
    assert far(result.latents, expected) < TOLERANCE


NOWHERE = {"threshold": 1.0}  # above which nothing lies
NO_TOKENS = {"source": [()] * 4, "target": [()] * 4}  # all of the picture


@pytest.mark.parametrize("owner", [[0, 0, 1, 1], [0, 1, 1]], ids=["shared", "uneven"])
def test_full_and_empty_masks_are_plug_and_play_and_plain_sampling(unet, owner):
    some = scene.rows(STEPS, owner)
    schedule, _ = both_schedules(STEPS)
    injecting = Injecting(2, 2)
    pnp = some.translated(unet, schedule, 2, 2)
    plain = some.translated(unet, schedule, 0, 0)

    def latents(mode, **form):
        how = masking(mode, len(owner), **{"source": SOURCE * 2, "target": TARGET * 2, **form})
        return made(unet, some, how, schedule, injecting).latents

    assert torch.equal(latents("foreground", **NO_TOKENS, **FORM), pnp)
    assert torch.equal(latents("background", **NOWHERE), pnp)
    assert far(latents("foreground", **NOWHERE), plain) < TOLERANCE
    assert far(latents("background", **NO_TOKENS, **FORM), plain) < TOLERANCE
    assert far(latents("both", **NO_TOKENS, **FORM), pnp) < TOLERANCE
    assert far(latents("both", **NOWHERE), pnp) < TOLERANCE
    assert far(pnp, plain) > 10 * TOLERANCE


def test_each_mode_is_another(unet):
    some = scene.rows(STEPS, OWNER, SCALES)
    schedule, _ = both_schedules(STEPS)
    results = [some.translated(unet, schedule, f, f) for f in (0, 2)]
    results += [
        made(unet, some, masking(mode), schedule, Injecting(2, 2)).latents for mode in MODES
    ]
    for n, a in enumerate(results):
        for b in results[:n]:
            assert all(far(one, other) > 10 * TOLERANCE for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_rows_do_not_depend_on_their_company(unet, mode):
    some, how = scene.rows(STEPS, OWNER, SCALES), masking(mode)
    schedule, _ = both_schedules(STEPS)
    together = made(unet, some, how, schedule, Injecting(2, 1))
    for n, image in enumerate(OWNER):
        one = replace(
            some,
            trajectory=some.trajectory[:, [image]],
            source=some.source[[image]],
            owner=[0],
            target=some.target[[n]],
            negative=some.negative[[n]],
            scale=[some.scale[n]],
        )
        own = replace(how, text=how.text[[n]], source=[how.source[n]], target=[how.target[n]])
        alone = made(unet, one, own, schedule, Injecting(2, 1))
        assert far(alone.latents, together.latents[[n]]) < TOLERANCE
        assert torch.equal(alone.source, together.source[:, [n]])
        assert torch.equal(alone.target, together.target[:, [n]])


def test_without_injection_there_are_no_masks_and_nothing_is_read(unet):
    some = scene.rows(STEPS, OWNER, SCALES)
    schedule, _ = both_schedules(STEPS)
    before = unet.evaluations
    result = made(unet, some, masking("foreground"), schedule, Injecting(0, 0))
    assert unet.evaluations - before == STEPS * 2 * len(OWNER)
    assert (len(result.source), len(result.target)) == (0, 0)
    assert far(result.latents, some.translated(unet, schedule, 0, 0)) < TOLERANCE


def test_where_a_mode_injects():
    source, target = torch.tensor([[1.0, 0.25, 0.0]]), torch.tensor([[0.0, 0.5, 0.0]])
    foreground, background, both = (Where.of(mode, source, target) for mode in MODES)
    assert foreground.share.tolist() == [[1.0, 0.5, 0.0]]
    assert background.share.tolist() == [[0.0, 0.5, 1.0]]
    assert (both.share, both.parts.tolist()) == (None, source.tolist())
    assert foreground.parts is background.parts is None


class Strange(AttnProcessor2_0):
    """A processor of a kind of its own, with which nothing may be shared."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Strange, AttnProcessor])
@pytest.mark.parametrize("tokens", [{}, NO_TOKENS], ids=["some", "all"])
def test_processors_of_another_kind_keep_their_own_way(unet, monkeypatch, mode, kind, tokens):
    some, how = scene.rows(2, OWNER, SCALES), masking(mode, **tokens, **FORM)
    schedule, _ = both_schedules(2)
    expected = made(unet, some, how, schedule, Injecting(1, 1))
    with monkeypatch.context() as patch:
        for module in unet.sites.attention:
            patch.setattr(module, "processor", kind())
        result = made(unet, some, how, schedule, Injecting(1, 1))
    assert far(result.latents, expected.latents) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_no_trace_is_left_also_after_an_exception(unet, monkeypatch, mode):
    some = scene.rows(STEPS, OWNER, SCALES)
    schedule, _ = both_schedules(STEPS)
    before = hooks(unet)
    expected = made(unet, some, masking(mode), schedule, Injecting(2, 2)).latents
    assert hooks(unet) == before
    calls = iter(range(5))
    forward = unet.module.up_blocks[3].resnets[1].forward

    def failing(*args, **more):
        if next(calls) == 4:  # in the translated evaluation of the second step
            raise RuntimeError("out of luck")
        return forward(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(unet.module.up_blocks[3].resnets[1], "forward", failing)
        with pytest.raises(RuntimeError, match="out of luck"):
            made(unet, some, masking(mode), schedule, Injecting(2, 2))
    assert hooks(unet) == before
    assert torch.equal(made(unet, some, masking(mode), schedule, Injecting(2, 2)).latents, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_site_that_is_not_met_is_an_error(unet, monkeypatch, mode):
    some = scene.rows(STEPS, OWNER, SCALES)
    schedule, _ = both_schedules(STEPS)
    hidden = Bypass("to_k", when=lambda x: len(x) == 2 * len(OWNER))
    with monkeypatch.context() as patch:
        patch.setattr(unet.sites.attention[3], "processor", hidden)
        with pytest.raises(InjectionNotFired):
            made(unet, some, masking(mode), schedule, Injecting(2, 2))
