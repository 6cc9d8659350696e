"""Cross-attention maps: what is read, from which layers, without a trace; masks made of them."""

from __future__ import annotations

import math

import pytest
import torch

from pnp_batch.diffusion.maps import (
    CrossMaps,
    fitted,
    positions,
    recording,
    subject_masks,
    subject_words,
)
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidModel
from pnp_batch.layers import map_level
from tests import masked_reference, tiny
from tests.diffusion.scene import TOLERANCE, far, latents, texts
from tests.diffusion.test_injection import hooks
from tests.masked_reference import Subject


@pytest.fixture(scope="module")
def whole() -> UNet:
    """A UNet with attention in its encoder, too."""
    return UNet(tiny.new_unet("sd2"))


# ----------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("side", "found"), [(64, (2, 16)), (96, (2, 24)), (128, (2, 32)), (32, (1, 16)), (8, (0, 8))]
)
def test_maps_are_read_where_they_are_nearest_to_16(side, found):
    assert map_level(side, levels=4) == found


def by_hand(unet, x, t, text):
    """softmax(q k^T / sqrt(d)) of all cross-attention with 8 x 8 places, the mean of all heads."""
    met = {}

    def note(attention, args, more):
        met[attention] = (args[0], more["encoder_hidden_states"])

    modules = [m for name, m in unet.module.named_modules() if name.endswith("attn2")]
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in modules]
    with torch.no_grad():
        unet(x, t, text)
    for handle in handles:
        handle.remove()
    maps = []
    for attention, (hidden, words) in met.items():
        if hidden.shape[1] == 64:
            q, k = attention.to_q(hidden), attention.to_k(words)
            q, k = (y.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (q, k))
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            maps += logits.softmax(dim=-1).unbind(dim=1)
    assert len(maps) == (2 + 3) * 2  # of layers down and up, and of heads
    return (sum(maps) / len(maps)).transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize("stop", [False, True])
def test_maps_are_the_mean_over_heads_and_layers_of_one_side(whole, stop):
    x, text = latents(2), texts(2)
    expected = by_hand(whole, x, 301, text)
    with torch.no_grad(), recording(whole.module, 8, stop=stop) as maps:
        whole(x, 301, text)
    found = maps.take()
    assert found.shape == (2, text.shape[1], 8, 8)
    assert far(found, expected) < TOLERANCE
    assert far(found.sum(dim=1), torch.ones(2, 8, 8)) < TOLERANCE


def test_reading_changes_nothing_and_leaves_no_trace(whole):
    x, text = latents(1), texts(1)
    before, expected = hooks(whole), whole(x, 301, text)
    with recording(whole.module, 8):
        assert torch.equal(whole(x, 301, text), expected)
        assert hooks(whole) != before
    with pytest.raises(KeyError), recording(whole.module, 8):
        raise KeyError("x")
    with recording(whole.module, 8, stop=True):
        whole(x, 301, text)
    assert hooks(whole) == before


def test_an_evaluation_that_stops_goes_no_further_than_its_last_map(whole):
    met = []
    names = ("up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k", "conv_out")
    handles = [
        whole.module.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: met.append(name)
        )
        for name in names
    ]
    with recording(whole.module, 8, stop=True):
        whole(latents(1), 301, texts(1))
    for handle in handles:
        handle.remove()
    assert met == [names[0]]  # for the map alone


def test_maps_begin_anew_once_they_are_taken(whole):
    x, text = latents(1), texts(1)
    with torch.no_grad(), recording(whole.module, 8) as maps:
        whole(x, 301, text)
        first = maps.take()
        whole(x, 801, text)
        second = maps.take()
    assert far(second, by_hand(whole, x, 801, text)) < TOLERANCE
    assert far(first, second) > 10 * TOLERANCE


def test_maps_that_were_not_met_are_an_error():
    with pytest.raises(InvalidModel, match="no cross-attention was met"):
        CrossMaps(8).take()


# ------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("asked", "prompt", "other", "words"),
    [
        ("cat", "a photo of a dog", "a photo of a cat", {"cat"}),
        (" Red, house ", "x", "y", {"red", "house"}),
        ("the", "the house", "", {"the"}),  # who asks for it gets it
        (
            "",
            "a photo of a red house",
            "an oil painting of a Red house, at night",
            {"red", "house"},
        ),
        ("", "a cat on grass", "a dog at sea", {"cat", "grass"}),
        ("", "the", "a", set()),
    ],
)
def test_the_words_of_the_subject(asked, prompt, other, words):
    assert subject_words(asked, prompt, other) == words


def test_positions_are_those_of_all_tokens_of_the_words():
    spans = [("A", (1,)), ("Blue", (2, 3)), ("house", (4,)), ("blue", (6,))]
    assert positions(frozenset({"blue", "garden"}), spans) == (2, 3, 6)
    assert positions(frozenset(), spans) == ()


# ------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("threshold", [0.1, 0.5])
@pytest.mark.parametrize(("dilation", "softness"), [(0, 0.0), (1, 0.0), (0, 0.7), (1, 1.5)])
def test_masks_are_the_references(threshold, dilation, softness):
    maps = torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(3)) ** 12
    tokens = [(1,), (0, 3), ()]
    form = {"threshold": threshold, "dilation": dilation, "softness": softness}
    found = subject_masks(maps, tokens, **form)
    assert found.shape == (3, 1, 8, 8)
    for n, own in enumerate(tokens):
        expected = masked_reference.mask_of(
            maps[n], own, Subject(torch.empty(0), (), (), threshold, dilation, softness)
        )
        assert far(found[n, 0], expected) < TOLERANCE
    assert 0 < float(found[0].mean()) < 1


def test_a_mask_does_not_depend_on_its_neighbours_nor_on_how_bright_its_maps_are():
    maps = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    found = subject_masks(maps, [(1,), (2,)], threshold=0.4)
    alone = subject_masks(0.01 * maps[1:], [(2,)], threshold=0.4)
    assert torch.equal(found[1:], alone)


def test_flat_maps_have_no_subject():
    assert subject_masks(torch.ones(1, 2, 4, 4), [(1,)], threshold=0.0).sum() == 0


@pytest.mark.parametrize("side", [2, 4, 8, 12, 16, 64])
def test_a_mask_at_another_side_is_the_references(side):
    masks = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    # Beyond the outermost centres it goes on as it is there.
    if side <= 8:
        for mask, found in zip(masks, fitted(masks, side), strict=True):
            assert far(found[0], masked_reference.resized(mask[0], side)) < TOLERANCE
    ones = fitted(torch.ones(1, 1, 8, 8), side)
    assert torch.equal(ones, torch.ones(1, 1, side, side))
