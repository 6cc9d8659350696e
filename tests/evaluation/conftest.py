"""Tiny networks of the real classes, with random weights, and pictures to score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)

from pnp_batch.evaluation import Pair
from tests import tiny

SIDE = 32
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
# Input, squeezed and expanded channels of SqueezeNet 1.1's modules, as torchvision numbers them.
FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """A picture of smooth noise."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)


def pair(**changes: object) -> Pair:
    """A pair of two pictures, with everything that can be said of it but a mask and a world."""
    given = {"output": picture(1), "source": picture(2), "prompt": "a red cat"}
    return Pair(**{**given, "source_prompt": "a photo of a dog", **changes})


def prepared(folder: Path) -> None:
    """Writes how pictures are prepared, as the networks' authors do."""
    config = {"image_mean": MEAN, "image_std": STD, "crop_size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A CLIP of two layers in transformers format, for pictures of 24 x 24."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny.new_tokenizer("sd1")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=tiny.TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shape, num_hidden_layers=2, image_size=24, patch_size=8)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    tiny._filled(lambda: CLIPModel(config), seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 24},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """A ViT of two layers in transformers format, for pictures of 24 x 24."""
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        image_size=24,
        patch_size=8,
    )
    tiny._filled(lambda: ViTModel(config, add_pooling_layer=False), seed=6).save_pretrained(folder)
    prepared(folder)
    return folder


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory) -> Path:
    """SqueezeNet 1.1's state with random weights, as torchvision saves it."""
    generator = torch.Generator().manual_seed(7)
    state = {}

    def layer(name: str, out: int, channels: int, kernel: int) -> None:
        scale = (2 / (channels * kernel * kernel)) ** 0.5
        shape = (out, channels, kernel, kernel)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    layer("features.0", 64, 3, 3)
    for number, (channels, squeezed, expanded) in FIRES.items():
        layer(f"features.{number}.squeeze", squeezed, channels, 1)
        layer(f"features.{number}.expand1x1", expanded, squeezed, 1)
        layer(f"features.{number}.expand3x3", expanded, squeezed, 3)
    layer("classifier.1", 10, 512, 1)
    path = tmp_path_factory.mktemp("lpips") / "squeezenet.pth"
    torch.save(state, path)
    return path
