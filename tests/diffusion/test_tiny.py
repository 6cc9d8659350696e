"""The tiny UNets: everything that Plug-and-Play replaces must show, or no comparison means much."""

from __future__ import annotations

import pytest
import torch

from tests import reference, tiny
from tests.diffusion.scene import EMPTY, far, latents, texts

T = 501


@pytest.fixture(scope="module", params=tiny.LAYOUTS)
def met(request, unets):
    """How far given features change an output; its own features; those of another latent."""
    unet = unets[request.param].module
    x, guidance = latents(2).split(1)
    output, own = reference.evaluate(unet, x, T, texts(1))
    _, features = reference.evaluate(unet, guidance, T, EMPTY)

    def change(given):
        return far(reference.evaluate(unet, x, T, texts(1), given)[0], output)

    return change, own, features


def test_features_and_attention_each_change_the_output_by_more_than_a_tenth(met):
    change, _, features = met
    assert change(reference.Features(f=features.f)) > 0.1
    assert change(reference.Features(qk=features.qk)) > 0.1


def test_every_query_and_every_key_changes_the_output_by_more_than_a_hundredth(met):
    change, own, features = met
    for layer, (q, k) in features.qk.items():
        for replaced in ((q, own.qk[layer][1]), (own.qk[layer][0], k)):
            given = {**own.qk, layer: replaced}
            assert change(reference.Features(qk=given)) > 0.01


def test_the_reference_given_its_own_features_changes_nothing(met):
    change, own, _ = met
    assert change(own) < 1e-6


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_the_reference_without_injection_is_the_plain_unet(unets, layout):
    unet = unets[layout].module
    by_hand, _ = reference.evaluate(unet, latents(1), T, texts(1))
    with torch.no_grad():
        assert far(by_hand, unet(latents(1), T, texts(1)).sample) < 1e-5


def test_the_layouts_differ_as_the_published_ones_do(unets):
    sd1, sd2 = (unets[layout].module.up_blocks[3].attentions[0] for layout in tiny.LAYOUTS)
    assert isinstance(sd1.proj_in, torch.nn.Conv2d)
    assert isinstance(sd2.proj_in, torch.nn.Linear)
    deepest = unets["sd2"].module.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    assert deepest.heads != sd2.transformer_blocks[0].attn1.heads


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_a_whole_model_on_disk_is_complete(tiny_model_dir, layout):
    folder = tiny_model_dir(layout)
    assert {entry.name for entry in folder.iterdir()} == {
        "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    }  # fmt: skip
