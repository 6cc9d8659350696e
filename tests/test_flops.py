"""The analytic cost model against torch's counter on the real diffusers modules.

Both leave out the same things (normalisation, activations, softmax, biases, sums), so the
counts are equal to the last multiply-add, far inside the 0.5 % that a plan needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pnp_batch.errors import InvalidModel
from pnp_batch.flops import UNetFlops, unet_flops, vae_flops

SD15_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD21_UNET = SD15_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
SD_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TINY = {"norm_num_groups": 4, "block_out_channels": [8, 16, 32, 32], "cross_attention_dim": 12}
TINY_UNETS = {
    "sd1": SD15_UNET | TINY | {"attention_head_dim": 4},
    "sd2": SD21_UNET | TINY | {"attention_head_dim": [1, 2, 4, 4]},
}
TINY_VAE = SD_VAE | {"norm_num_groups": 4, "block_out_channels": [8, 16, 24], "layers_per_block": 1}
TINY_VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 3, "latent_channels": 8}
TINY_VAE |= {"up_block_types": ["UpDecoderBlock2D"] * 3}


FEATURE_SITES = {3 * b + n: f"up_blocks.{b}.resnets.{n}" for b in range(4) for n in range(3)}
ATTENTION_SITES = {
    3 * b + n: f"up_blocks.{b}.attentions.{n}.transformer_blocks.0.attn1"
    for b in range(1, 4)
    for n in range(3)
}


Forward = tuple[UNet2DConditionModel, Callable[[], object]]


class Stopped(Exception):
    """Raised in a hook where a guidance branch ends."""


def counting() -> tuple[ExitStack, FlopCounterMode]:
    """A counter for one forward. It has no formula for the CPU's fused attention, so not fused."""
    stack = ExitStack()
    counter = stack.enter_context(FlopCounterMode(display=False))
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(torch.no_grad())
    return stack, counter


def count(call: Callable[[], object]) -> int:
    stack, counter = counting()
    with stack:
        call()
    return counter.get_total_flops()


def count_until(call: Callable[[], object], *last: nn.Module) -> int:
    """What has run when the last of these modules returns, with nothing after it."""
    waiting = set(last)

    def stop(module: nn.Module, *_: object) -> None:
        waiting.discard(module)
        if not waiting:
            raise Stopped

    handles = [module.register_forward_hook(stop) for module in last]
    stack, counter = counting()
    with stack, pytest.raises(Stopped):
        call()
    for handle in handles:
        handle.remove()
    return counter.get_total_flops()


def clock(call: Callable[[], object], model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """The count at which each module of `model` begins, and at which it ends, in one forward."""
    begin: dict[str, int] = {}
    end: dict[str, int] = {}
    stack, counter = counting()
    for name, module in model.named_modules():
        stack.callback(
            module.register_forward_pre_hook(
                lambda *_, name=name: begin.update({name: counter.get_total_flops()})
            ).remove
        )
        stack.callback(
            module.register_forward_hook(
                lambda *_, name=name: end.update({name: counter.get_total_flops()})
            ).remove
        )
    with stack:
        call()
    return begin, end


def forward(config: dict[str, Any], side: int, tokens: int, device: str = "cpu") -> Forward:
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(config)
        latents = torch.zeros(1, config["in_channels"], side, side)
        text = torch.zeros(1, tokens, config["cross_attention_dim"])
        timestep = torch.zeros(1, dtype=torch.int64)
    return unet, lambda: unet(latents, timestep, text)


def measured(unet: nn.Module, call: Callable[[], object], side: int) -> UNetFlops:
    """The numbers from the real UNet, in one forward."""
    begin, end = clock(call, unet)
    # After v and before the output projection: QK^T, and as much again for its product with v.
    qk = {
        n: end[f"{s}.to_k"] - begin[s] + (begin[f"{s}.to_out.0"] - end[f"{s}.to_v"]) // 2
        for n, s in ATTENTION_SITES.items()
    }
    # Of 16 x 16 they are the full resolution's, of 64 x 64 those two levels below.
    last = {11: "3", 16: "3", 64: "1"}[side]
    cross = f"up_blocks.{last}.attentions.2.transformer_blocks.0.attn2"
    scores = (begin[f"{cross}.to_out.0"] - end[f"{cross}.to_v"]) // 2
    to_maps = end[f"{cross}.to_k"] + scores
    around = end["time_embedding"] + end["conv_in"] - begin["conv_in"]
    return UNetFlops(
        full=end[""],
        deep=begin["up_blocks.3.resnets.2"] - around,
        to_feature={n: end[f"{site}.conv2"] for n, site in FEATURE_SITES.items()},
        feature_branch={n: end[f"{s}.conv2"] - begin[s] for n, s in FEATURE_SITES.items()},
        to_attention={
            n: max(end[f"{site}.to_q"], end[f"{site}.to_k"]) for n, site in ATTENTION_SITES.items()
        },
        qk=qk,
        to_maps=to_maps,
    )


def measured_vae(config: dict[str, Any], resolution: int, device: str = "cpu") -> tuple[int, int]:
    with torch.device(device):
        vae = AutoencoderKL.from_config(config)
        picture = torch.zeros(1, 3, resolution, resolution)
        side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
        latents = torch.zeros(1, config["latent_channels"], side, side)
    return count(lambda: vae.encode(picture)), count(lambda: vae.decode(latents))


# 11 does not halve evenly: the skip connections, not the factor 2, say how large the decoder is.
@pytest.mark.parametrize(("layout", "side", "tokens"), [("sd1", 11, 5), ("sd2", 16, 77)])
def test_unet_equals_the_counter(layout, side, tokens):
    config = TINY_UNETS[layout]
    found = unet_flops(config, side, tokens)
    assert found == measured(*forward(config, side, tokens), side)
    assert (list(found.to_feature), list(found.qk)) == ([*range(12)], [*range(3, 12)])


@pytest.mark.parametrize("layout", sorted(TINY_UNETS))
def test_stopped_forwards_equal_the_counter(layout):
    unet, call = forward(TINY_UNETS[layout], 16, 77)
    expected = unet_flops(TINY_UNETS[layout], 16, 77)
    for layer in (3, 4, 11):
        conv2 = unet.get_submodule(f"{FEATURE_SITES[layer]}.conv2")
        assert count_until(call, conv2) == expected.to_feature[layer]
        attention = unet.get_submodule(ATTENTION_SITES[layer])
        stopped = count_until(call, attention.to_q, attention.to_k)
        assert stopped == expected.to_attention[layer]


def test_configuration_that_diffusers_saves(tmp_path):
    UNet2DConditionModel.from_config(TINY_UNETS["sd2"]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert unet_flops(saved, 16, 77) == unet_flops(TINY_UNETS["sd2"], 16, 77)


@pytest.mark.parametrize("resolution", [32, 64])
def test_vae_equals_the_counter(resolution):
    assert vae_flops(TINY_VAE, resolution) == measured_vae(TINY_VAE, resolution)


def test_full_size_unet_on_the_meta_device():
    assert unet_flops(SD15_UNET, 64, 77) == measured(*forward(SD15_UNET, 64, 77, "meta"), 64)


def test_full_size_vae_on_the_meta_device():
    assert vae_flops(SD_VAE, 512) == measured_vae(SD_VAE, 512, device="meta")


def test_figures_of_stable_diffusion_15():
    unet = unet_flops(SD15_UNET, 64, 77)
    shared = sum(unet.qk[layer] for layer in range(4, 12))
    giga = [unet.full, unet.to_feature[4], unet.to_attention[11], shared, *vae_flops(SD_VAE, 512)]
    assert [flops / 1e9 for flops in giga] == pytest.approx(
        [803, 352, 767, 50, 1117, 2515], rel=0.01
    )


@pytest.mark.parametrize(
    "change",
    [
        {"up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]},
        {"layers_per_block": 1},
        {"transformer_layers_per_block": [1, 2, 10, 10]},
        {"only_cross_attention": [True, True, True, False]},
    ],
)
def test_other_layouts_are_refused_by_name(change):
    with pytest.raises(InvalidModel, match=f"unet/config.json: {next(iter(change))} is "):
        unet_flops(SD15_UNET | change, 64, 77)


def test_needs_neither_torch_nor_diffusers():
    code = "import sys, pnp_batch.flops; print({'torch', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
