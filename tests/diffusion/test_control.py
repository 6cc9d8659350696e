"""Control of attention: what a control is shown, what it may change, and what it leaves behind."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

from pnp_batch.diffusion.control import AttentionNotMet, Site, controlled
from pnp_batch.diffusion.maps import recording
from pnp_batch.diffusion.source_branch import Layout, Source
from pnp_batch.errors import InvalidModel
from tests import reference_control, tiny
from tests.diffusion.scene import TOLERANCE, far, latents, texts

# Places of the blocks of the whole UNet with 8 x 8 latents: down, middle, up.
PLACES = [64, 64, 16, 16, 4, 4, 1, 4, 4, 4, 16, 16, 16, 64, 64, 64]


class Noting:
    """A control that notes the sites it is shown, and acts at those that are asked for."""

    def __init__(self, acts=lambda site: True, change=lambda out: out) -> None:
        self._acts, self._change = acts, change
        self.sites, self.acted = [], []

    def acts(self, site):
        self.sites.append(site)
        return self._acts(site)

    def attend(self, site, query, key, value):
        self.acted.append((site, query.shape, key.shape, value.shape))
        return self._change(F.scaled_dot_product_attention(query, key, value))


@pytest.fixture(scope="module", params=tiny.LAYOUTS)
def unet(request):
    return tiny.new_unet(request.param)


@pytest.fixture(scope="module")
def evaluate(unet):
    x, text = latents(2), texts(2)

    @torch.inference_mode()
    def once():
        return unet(x, 3, text).sample

    return once


def test_all_attentions_are_shown_in_the_order_of_an_evaluation(unet, evaluate):
    control = Noting()
    with controlled(unet, control) as run:
        run.evaluate(evaluate)
    wanted = [Site(n, cross, p) for n, p in enumerate(PLACES) for cross in (False, True)]
    assert control.sites == wanted
    for site, query, key, value in control.acted:
        assert query[0] == 2
        assert (query[1] * query[3], query[2]) in {(16, site.tokens), (32, site.tokens)}
        assert key == value == (*query[:2], 6 if site.cross else site.tokens, query[3])


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_a_control_that_changes_nothing_changes_nothing(unet, evaluate, processor):
    before = dict(unet.attn_processors)
    unet.set_attn_processor(processor())
    try:
        plain = evaluate()
        with controlled(unet, Noting(acts=lambda site: False)) as run:
            assert torch.equal(run.evaluate(evaluate), plain)
        with controlled(unet, Noting()) as run:
            assert far(run.evaluate(evaluate), plain) < TOLERANCE
    finally:
        unet.set_attn_processor(before)


@pytest.mark.parametrize(("layer", "cross"), [(0, True), (6, False), (15, True)])
def test_what_is_changed_at_one_attention_is_changed_there(unet, layer, cross):
    def here(one):
        return one.layer == layer and one.cross == cross

    with controlled(unet, Noting(here, lambda out: 2 * out)) as run, torch.no_grad():
        x, text = latents(1), texts(1)
        changed = run.evaluate(lambda: unet(x, 3, text).sample)

    def doubled(met, before):
        return reference_control.plain(met, before) * (2 if here(met) else 1)

    with torch.no_grad():
        assert far(changed, reference_control.evaluate(unet, x, 3, text, doubled)[0]) < TOLERANCE
        plain, _ = reference_control.evaluate(unet, x, 3, text)
    assert far(changed, plain) > 10 * TOLERANCE


def test_nothing_is_left_behind(unet, evaluate):
    before = dict(unet.attn_processors)
    with controlled(unet, Noting()):
        assert all(unet.attn_processors[name] is not own for name, own in before.items())
    assert unet.attn_processors == before
    with pytest.raises(ZeroDivisionError), controlled(unet, Noting()) as run:
        run.evaluate(lambda: 1 / 0)
    assert unet.attn_processors == before


def test_an_attention_that_is_not_met_raises(unet, evaluate):
    """As a later diffusers might, the middle block computes its attention in another way."""
    own = unet.mid_block.attentions[0]

    class Passing(nn.Module):
        def forward(self, x, **_):
            return (x,)

    with controlled(unet, Noting()) as run:
        run.evaluate(evaluate)
        unet.mid_block.attentions[0] = Passing()
        try:
            with pytest.raises(AttentionNotMet, match="2 of 32"):
                run.evaluate(evaluate)
        finally:
            unet.mid_block.attentions[0] = own
        with pytest.raises(AttentionNotMet, match="0 of 32 attentions were not met, 64 calls"):
            run.evaluate(lambda: evaluate() + evaluate())
        run.evaluate(evaluate)


def test_an_attention_that_cannot_be_controlled_is_refused(unet):
    class Strange(AttnProcessor2_0):
        pass

    attention = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    own = attention.processor
    attention.set_processor(Strange())
    before = dict(unet.attn_processors)
    try:
        with pytest.raises(InvalidModel, match="block 7 .* Strange"), controlled(unet, Noting()):
            pass
        assert unet.attn_processors == before
    finally:
        attention.set_processor(own)


def test_maps_are_read_beneath_a_control(unet, evaluate):
    with recording(unet, 8) as maps:
        evaluate()
        plain = maps.take()
        assert not maps.met
    with controlled(unet, Noting()) as run, recording(unet, 8) as maps:
        run.evaluate(evaluate)
        assert torch.equal(maps.mean(), maps.mean())
        assert far(maps.take(), plain) < TOLERANCE
        run.evaluate(partial(evaluate))
        maps.clear()
        assert not maps.met


# --------------------------------------------------------------------- whose rows are whose


@pytest.mark.parametrize(
    ("halves", "negative", "route"),
    [
        # [source negative 0 1 | source 2 3 | negative 4 5 6 | target 7 8 9]
        (2, True, [0, 1, 2, 3, 1, 0, 1, 3, 2, 3]),
        (2, False, [0, 1, 2, 3, 4, 5, 6, 3, 2, 3]),
        # [source 0 1 | negative 2 3 4 | target 5 6 7]
        (1, True, [0, 1, 1, 0, 1, 1, 0, 1]),
        (1, False, [0, 1, 2, 3, 4, 1, 0, 1]),
    ],
)
def test_rows_are_routed_to_their_images(halves, negative, route):
    layout = Layout(torch.tensor([1, 0, 1]), images=2, halves=halves)
    assert layout.route(negative=negative).tolist() == route
    assert layout.source.tolist() == route[-3:]


@pytest.mark.parametrize(
    ("resets", "window", "evaluated"),
    [
        (False, range(2), [0, 1]),
        (False, range(2, 4), [0, 1, 2, 3]),
        (False, range(4, 4), []),
        (True, range(2), [0, 1]),
        (True, range(2, 4), [2, 3]),
        (True, range(4, 4), []),
    ],
)
def test_sources_are_evaluated_as_long_as_something_is_taken(resets, window, evaluated):
    source = Source(guidance=None, negative=None, scale=7.5, resets=resets)
    assert [index for index in range(4) if source.runs(index, window)] == evaluated
