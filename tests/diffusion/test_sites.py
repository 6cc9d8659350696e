"""Sites: the modules that Plug-and-Play names, and clear words where a UNet has none."""

from __future__ import annotations

import copy

import pytest
from diffusers import UNet2DConditionModel

from pnp_batch.diffusion.sites import find_sites
from pnp_batch.errors import InvalidModel
from tests import tiny


def smaller(levels: int, **changes: object) -> UNet2DConditionModel:
    """A UNet with fewer levels than Stable Diffusion's."""
    return tiny.new_unet(
        "sd2",
        block_out_channels=(16, 16, 32)[:levels],
        attention_head_dim=[2, 2, 4][:levels],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")[:levels],
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")[-levels:],
        **changes,
    )


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_sites_are_decoder_layer_4_and_self_attention_4_to_11(layout):
    unet = tiny.new_unet(layout)
    names = {module: name for name, module in unet.named_modules()}
    sites = find_sites(unet)
    assert [names[block] for block in sites.features] == ["up_blocks.1.resnets.1"]
    assert [names[module] for module in sites.attention] == [
        f"up_blocks.{block}.attentions.{layer}.transformer_blocks.0.attn1"
        for block, layer in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    ]


@pytest.mark.parametrize("layer", range(12))
def test_sites_of_any_layer_are_found_where_it_has_them(unets, layer):
    unet = unets["sd1"].module
    names = {module: name for name, module in unet.named_modules()}
    block, number = divmod(layer, 3)
    found = find_sites(unet, [layer], [layer] if block else [])
    assert [names[one] for one in found.features] == [f"up_blocks.{block}.resnets.{number}"]
    expected = f"up_blocks.{block}.attentions.{number}.transformer_blocks.0.attn1"
    assert [names[one] for one in found.attention] == [expected][: bool(block)]
    outermost = {*found.features, *found.attention} if layer == 11 else set()
    assert found.outermost == outermost


def test_the_first_three_layers_have_no_attention(unets):
    with pytest.raises(InvalidModel, match=r"up_blocks\[0\]\.attentions\[2\].*decoder layer 2"):
        find_sites(unets["sd1"].module, [4], [2])


def test_a_unet_of_two_up_blocks_has_no_sites():
    with pytest.raises(InvalidModel, match=r"up_blocks\[\d\]\.attentions\[\d\]") as refused:
        find_sites(smaller(2))
    assert "Stable Diffusion" in refused.value.hint


def test_a_unet_of_three_up_blocks_as_in_sdxl_has_no_sites():
    with pytest.raises(InvalidModel, match=r"up_blocks\[2\]\.attentions\[0\].*decoder layer 6"):
        find_sites(smaller(3, transformer_layers_per_block=(1, 2, 3)))


def test_a_unet_with_too_few_layers_to_a_block_has_no_sites():
    with pytest.raises(InvalidModel, match=r"up_blocks\[1\]\.attentions\[2\].*decoder layer 5"):
        find_sites(tiny.new_unet("sd1", layers_per_block=1))


def test_a_unet_without_text_has_no_sites():
    unet = tiny.new_unet(
        "sd1",
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
    )
    with pytest.raises(InvalidModel, match=r"up_blocks\[1\]\.attentions\[1\]"):
        find_sites(unet)


def test_fused_projections_are_refused_and_unfused_ones_taken(unets):
    unet = copy.deepcopy(unets["sd1"].module)
    unet.fuse_qkv_projections()
    with pytest.raises(InvalidModel, match="fused") as refused:
        find_sites(unet)
    assert "unfuse_qkv_projections" in refused.value.hint
    unet.unfuse_qkv_projections()
    assert len(find_sites(unet).attention) == 8
