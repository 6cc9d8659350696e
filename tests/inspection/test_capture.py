"""What is read out of a UNet, beside hooks and formulas of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidModel
from pnp_batch.inspection.capture import Layers, Projected, capture
from pnp_batch.inspection.words import attention_to_text, word_layers, word_maps
from tests import tiny

if TYPE_CHECKING:
    from typing import Any

T = 481
LAYERS = Layers(features=(0, 4, 11), self_attention=(4, 7, 11), cross_attention=(9, 10))


@pytest.fixture(scope="module", params=tiny.LAYOUTS)
def unet(request: pytest.FixtureRequest) -> UNet:
    return UNet(tiny.new_unet(request.param, **tiny.DECODER_ATTENTION_ONLY))


@pytest.fixture(scope="module")
def given() -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 16, 16, generator=generator)
    return x, T, torch.randn(1, tiny.TOKENS, tiny.WIDTH, generator=generator)


def seen(unet: UNet, given: Any, modules: dict[Any, torch.nn.Module]) -> dict[Any, Any]:
    """The inputs and outputs of modules, read by the test itself."""
    kept: dict[Any, Any] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, more, out, name=name: kept.__setitem__(name, (args, more, out)),
            with_kwargs=True,
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        unet(*given)
    for hook in hooks:
        hook.remove()
    return kept


def by_hand(attention: Any, hidden: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) of each head, and their mean, in NumPy."""
    query = (hidden @ attention.to_q.weight.T).double().numpy()
    key = (text @ attention.to_k.weight.T).double().numpy()
    width = query.shape[1] // attention.heads
    maps = []
    for head in range(attention.heads):
        own = slice(head * width, (head + 1) * width)
        product = query[:, own] @ key[:, own].T / np.sqrt(width)
        power = np.exp(product - product.max(axis=1, keepdims=True))
        maps.append(power / power.sum(axis=1, keepdims=True))
    return np.mean(maps, axis=0)


def test_features_are_the_residual_branch_of_each_layer(unet: UNet, given: Any) -> None:
    found = capture(unet, *given, LAYERS)
    blocks = {n: unet.module.up_blocks[n // 3].resnets[n % 3] for n in LAYERS.features}
    for layer, (args, _, output) in seen(unet, given, blocks).items():
        block = blocks[layer]
        with torch.no_grad():
            shortcut = block.conv_shortcut(args[0])
        torch.testing.assert_close(
            found.features[layer], (output - shortcut)[0], atol=1e-5, rtol=1e-5
        )
    assert found.features[4].shape == (32, 4, 4)


def test_attention_is_the_softmax_of_queries_and_keys(unet: UNet, given: Any) -> None:
    found = capture(unet, *given, LAYERS)
    blocks = unet.module.up_blocks
    for kind, captured in (("attn1", found.self_attention), ("attn2", found.cross_attention)):
        attentions = {
            n: getattr(blocks[n // 3].attentions[n % 3].transformer_blocks[0], kind)
            for n in captured
        }
        for layer, (args, more, _) in seen(unet, given, attentions).items():
            hidden = args[0][0]
            text = more.get("encoder_hidden_states")
            text = hidden if text is None else text[0]
            rows = captured[layer].probabilities()
            expected = by_hand(attentions[layer], hidden, text)
            np.testing.assert_allclose(rows.numpy(), expected, atol=1e-6)
            np.testing.assert_allclose(rows.sum(dim=1), 1, atol=1e-5)
            assert rows.std(dim=1).max() > 1e-3


def test_no_hook_stays(unet: UNet, given: Any) -> None:
    capture(unet, *given, LAYERS)
    with pytest.raises(RuntimeError):
        capture(unet, given[0], T, given[2][:, :, :-1], LAYERS)  # fails in the middle
    assert not [m for m in unet.module.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_values_that_are_not_finite_are_refused(unet: UNet, given: Any) -> None:
    with pytest.raises(InvalidModel, match="not finite"):
        capture(unet, given[0] * float("inf"), T, given[2], LAYERS)


def test_the_map_of_a_word_is_the_sum_over_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    attentions = [
        Projected(*torch.randn(2, 2, 9, 6, generator=generator), scale=0.5) for _ in range(3)
    ]
    mean = sum(a.probabilities().numpy() for a in attentions) / 3
    one, two = word_maps(attention_to_text(attentions), [("cat", (2,)), ("mushroom", (3, 5))])
    heat = (mean[:, 3] + mean[:, 5]).reshape(3, 3)
    np.testing.assert_allclose(two.heat, (heat - heat.min()) / np.ptp(heat), atol=1e-5)
    row, column = np.unravel_index(heat.argmax(), (3, 3))
    assert two.peak == ((column + 0.5) / 3, (row + 0.5) / 3)
    assert two.share == pytest.approx(heat.mean())
    assert (two.word, two.tokens, one.tokens) == ("mushroom", 2, 1)
    assert (one.heat.min(), one.heat.max()) == (0, 1)


def test_words_are_read_where_prompt_to_prompt_reads_them() -> None:
    assert word_layers(64) == word_layers(96) == (3, 4, 5)  # Stable Diffusion 1.5 and 2.1
    assert word_layers(16) == (6, 7, 8)
    assert word_layers(8) == word_layers(4) == (9, 10, 11)
