"""Tiny models of the real classes: UNets of both Stable Diffusion layouts, and whole pipelines.

Weights keep the variance from layer to layer, unlike the default initialisation, under which what
happens inside a UNet hardly reaches its output: every feature here shows in the result.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LAYOUTS = ("sd1", "sd2")
PREDICTIONS = ("epsilon", "v_prediction")
SIDE = 8  # latents along one side
SCALE_FACTOR = 4  # pixels for each latent: pictures of 32 x 32
TOKENS = 48
WIDTH = 32  # of text embeddings

# scheduler/scheduler_config.json as published with Stable Diffusion 1.5 and with 2.1.
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd1": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sd2": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
}
_UNET: dict[str, dict[str, Any]] = {
    # SD 1.x: one number for all levels (it is the number of heads), convolutions as projections.
    "sd1": {"attention_head_dim": 2, "use_linear_projection": False},
    "sd2": {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True},
}
# A third less to compute: the decoder, which Plug-and-Play reads and writes, is the whole one.
DECODER_ATTENTION_ONLY = {
    "down_block_types": ("DownBlock2D",) * 4,
    "mid_block_type": "UNetMidBlock2D",
}


def new_unet(layout: str, strength: float = 1.0, **changes: Any) -> UNet2DConditionModel:
    """A UNet of four levels for latents (B, 4, 8, 8) and text (B, tokens, 32).

    Args:
        layout: `sd1` or `sd2`.
        strength: scales the output layer.
        changes: configuration that differs.
    """
    config = {
        "sample_size": SIDE,
        "block_out_channels": (16, 16, 32, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
        **_UNET[layout],
        **changes,
    }
    unet = _filled(lambda: UNet2DConditionModel(**config), seed=1)
    with torch.no_grad():
        unet.conv_out.weight *= strength
        unet.conv_out.bias *= strength
        for name, parameter in unet.named_parameters():
            if "to_q.weight" in name or "to_k.weight" in name:
                parameter.mul_(1.5)  # attention that is far from uniform
    return unet


def new_vae() -> AutoencoderKL:
    """A VAE with 4 pixels to a latent, and a scaling factor of its own."""
    return _filled(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=SIDE * SCALE_FACTOR,
            scaling_factor=0.5,
        ),
        seed=2,
    )


def new_tokenizer(layout: str) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are single bytes; SD 2.x pads with `!`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={symbol: number for number, symbol in enumerate(symbols)},
        merges=[],
        pad_token="!" if layout == "sd2" else "<|endoftext|>",
        model_max_length=TOKENS,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _filled(lambda: CLIPTextModel(config), seed=3)


def save_model(folder: Path, layout: str, unet: UNet2DConditionModel | None = None) -> Path:
    """Writes a whole tiny Stable Diffusion model for pictures of 32 x 32; returns the folder.

    `sd1` predicts epsilon and comes with a PNDM scheduler, `sd2` predicts v and comes with DDIM,
    both as published.
    """
    scheduler = PNDMScheduler if layout == "sd1" else DDIMScheduler
    tokenizer = new_tokenizer(layout)
    StableDiffusionPipeline(
        vae=new_vae(),
        text_encoder=new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet or new_unet(layout),
        scheduler=scheduler.from_config(PUBLISHED[layout]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def _filled(build: Any, seed: int) -> Any:
    """Builds a module and fills it with reproducible weights of variance 1 / fan-in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the few values that are not filled
        module = build()
    generator = torch.Generator().manual_seed(seed)
    _fill(module, generator)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _fill(module: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            scale = 1 / math.sqrt(parameter[0].numel())
        elif name.endswith("bias"):
            scale = 0.1
        else:
            continue  # the scales of normalisations stay at 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
