"""The critic: what it sees is what transformers' own CLIP does, with gradients; and its views."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pnp_batch.diffusion.critic import critic, cut_outs
from pnp_batch.models.networks import CLIP
from tests.guided.scene import far, picture, pixels

TEXTS = ["a flat drawing of a red cat", "an oil painting of a boat at the sea"]


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prepared():
    """Pictures of CLIP's own size, in -1..1."""
    return torch.cat([pixels(seed, 64) for seed in (1, 2)])


def test_embeddings_are_those_of_transformers(sees, clip, prepared):
    # The embedded CLIP's mean and deviation are 0.5: it sees pictures in -1..1.
    found = clip.get_image_features(pixel_values=prepared)
    found = getattr(found, "pooler_output", found)
    assert (sees.images(prepared) - F.normalize(found, dim=-1)).abs().max() < 1e-4
    tokens = sees._tokenizer(TEXTS, padding=True, return_tensors="pt")
    told = clip.get_text_features(**tokens)
    told = getattr(told, "pooler_output", told)
    assert (sees.texts(TEXTS) - F.normalize(told, dim=-1)).abs().max() < 1e-4


def test_pictures_of_other_sizes_are_resized_as_for_the_metric(sees, clip):
    from transformers import CLIPImageProcessor

    large = picture(3, 96)
    prepare = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64, resample=3)
    by_pil = prepare(large, image_mean=[0.5] * 3, image_std=[0.5] * 3, return_tensors="pt")
    found = clip.get_image_features(pixel_values=by_pil.pixel_values)
    found = getattr(found, "pooler_output", found)
    cosine = F.cosine_similarity(sees.images(pixels(3, 96)), found)
    assert cosine > 0.998  # PIL rounds to 8 bits


def test_a_text_is_cut_to_what_clip_reads(sees):
    assert sees.text("cat " * 100).equal(sees.text("cat " * 90))


def test_gradients_are_the_slopes(sees, prepared):
    at = prepared[:1].clone().requires_grad_()
    target = sees.text(TEXTS[0])
    (slope,) = torch.autograd.grad((sees.images(at) @ target).sum(), at)
    ahead = slope / slope.norm()
    step = 0.05
    both = [(sees.images(at.detach() + sign * step * ahead) @ target).sum() for sign in (1, -1)]
    assert float(both[0] - both[1]) / (2 * step) == pytest.approx(float(slope.norm()), rel=0.02)


def test_its_weights_take_no_gradient(sees, prepared):
    sees.images(prepared.clone().requires_grad_()).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in sees._model.parameters())


def test_keys_and_hidden_states_are_those_of_the_layers(sees, clip, prepared):
    states = clip.vision_model(pixel_values=prepared, output_hidden_states=True).hidden_states
    last = clip.vision_model.encoder.layers[-1]
    keys = last.self_attn.k_proj(last.layer_norm1(states[-2]))
    found, hidden = sees.keys_and_hidden(prepared)
    assert far(found, keys) < 1e-4
    assert sees.keys(prepared).equal(found)
    assert len(hidden) == len(states)
    assert far(hidden[2], states[2]) < 1e-4
    assert sees.hidden(prepared)[1].equal(hidden[1])


def test_relevance_is_the_last_attention_times_its_gradient(sees, clip, prepared):
    with torch.enable_grad():
        seen = clip.vision_model(
            pixel_values=prepared.clone().requires_grad_(), output_attentions=True
        )
        attention = seen.attentions[-1]
        embedded = F.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
        (slope,) = torch.autograd.grad((embedded @ sees.text(TEXTS[0])).sum(), attention)
    expected = (attention * slope).clamp(min=0).mean(1)[:, 0, 1:].detach()
    found = sees.relevance(prepared, TEXTS[0])
    assert found.shape == (2, 1, 8, 8)
    for one, by_hand in zip(found, expected, strict=True):
        low, high = by_hand.min(), by_hand.max()
        assert (one.flatten() - (by_hand - low) / (high - low)).abs().max() < 1e-3
    assert not found.equal(sees.relevance(prepared, TEXTS[1]))


def test_auto_is_the_models_own(model):
    class Other:
        files = type("Files", (), {"name": "demo"})
        device = torch.device("cpu")

    assert critic("auto", Other()) is critic("demo", model)  # type: ignore[arg-type]
    assert CLIP.startswith("openai/")


def test_views_of_a_picture_depend_on_its_own_generator_alone():
    both = torch.cat([pixels(1), pixels(2)])
    together = cut_outs(both, 24, [dice(5), dice(6)], 3)
    assert together.shape == (6, 3, 24, 24)
    assert together[:3].equal(cut_outs(both[:1], 24, [dice(5)], 3))
    assert together[3:].equal(cut_outs(both[1:], 24, [dice(6)], 3))
    assert not together[:3].equal(cut_outs(both[:1], 24, [dice(7)], 3))
    own = dice(5)
    assert not cut_outs(both[:1], 24, [own], 3).equal(cut_outs(both[:1], 24, [own], 3))


def test_views_are_squares_of_the_picture():
    """Coordinates as colours tell where each view was cut from."""
    side = 64
    ramp = (torch.arange(side) + 0.5) / side * 2 - 1
    where = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])[None]
    views = cut_outs(where, 32, [dice(1)], 200, smallest=0.5)
    centre = views[:, :, 15:17, 15:17].mean((2, 3))
    right = (views[:, :, 12:20, 24:26] - views[:, :, 12:20, 6:8]).mean((2, 3)) / (18 / 16)
    scale, turned = right.norm(dim=1), right[:, 1] / right[:, 0]
    assert 0.49 < scale.min() < 0.56
    assert 0.94 < scale.max() < 1.01
    assert 0.2 < turned.abs().max() < math.tan(math.radians(15.5))
    assert 80 < (right[:, 0] < 0).sum() < 120
    # The centre is as far from the middle as the cut leaves room.
    assert (centre.abs() <= (1 - scale)[:, None] + 0.01).all()
    assert centre.abs().max() > 0.35
    whole = cut_outs(where, 32, [dice(1)], 50, smallest=1.0)
    assert whole[:, :, 15:17, 15:17].mean((2, 3)).abs().max() < 0.02


def test_gradients_flow_through_views():
    at = pixels(1).requires_grad_()
    cut_outs(at, 24, [dice(1)], 8).sum().backward()
    assert at.grad is not None
    assert (at.grad != 0).float().mean() > 0.9
