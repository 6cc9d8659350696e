"""What one evaluation of a Stable Diffusion UNet or VAE costs, read from its JSON configuration.

In: the dicts of unet/config.json or vae/config.json, a resolution, a number of text tokens.
Out: FLOPs of one row: twice the multiply-adds of convolutions, linear layers and the two matrix
products of attention, as torch's FlopCounterMode counts. Neither torch nor diffusers is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pnp_batch.errors import InvalidModel
from pnp_batch.layers import ATTENDING, DECODER, LAST, PER_BLOCK, map_level

# What all Stable Diffusion 1.x and 2.x models have in common, and what the walk relies on.
LAYOUT: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "only_cross_attention": False,
    "class_embed_type": None,
}


@dataclass(frozen=True)
class UNetFlops:
    """FLOPs of one UNet evaluation at batch 1, of its early stops, and of what injection spares.

    Attributes:
        full: of all of it.
        deep: of what a shallow evaluation leaves out: all between the first convolution and the
            last decoder layer.
        to_feature: of each decoder layer up to and with conv2 of its residual block.
        feature_branch: of each, conv1, time projection and conv2 of that block.
        to_attention: of each that has it, up to and with q and k of its self-attention.
        qk: of each of these, q, k and QK^T of its self-attention.
        to_maps: up to and with the last cross-attention map that masks are read from.
    """

    full: float
    deep: float
    to_feature: Mapping[int, float]
    feature_branch: Mapping[int, float]
    to_attention: Mapping[int, float]
    qk: Mapping[int, float]
    to_maps: float

    @property
    def shallow(self) -> float:
        """Time embedding, first convolution, last decoder layer, last convolution."""
        return self.full - self.deep


@dataclass
class _Walk:
    """A picture on its way through the layers: its side, its channels, and the cost so far."""

    side: int
    channels: int
    time_width: int = 0
    text: tuple[int, int] = (0, 0)  # tokens, width
    spent: int = 0
    marks: dict[str, int] = field(default_factory=dict)

    def product(self, rows: int, inner: int, columns: int) -> None:
        self.spent += 2 * rows * inner * columns

    def conv(self, out: int, kernel: int = 3) -> None:
        self.product(self.side**2, self.channels * kernel**2, out)
        self.channels = out

    def linear(self, out: int) -> None:  # or a 1 x 1 convolution, which costs the same
        self.conv(out, kernel=1)

    def resample(self, side: int) -> None:
        """A strided convolution downwards; upwards an interpolation (free), then a convolution."""
        self.side = side
        self.conv(self.channels)

    def resnet(self, path: str, out: int) -> None:
        source = self.channels
        self.marks[path] = self.spent
        self.conv(out)
        self.product(1, self.time_width, out)
        self.conv(out)
        self.marks[f"{path}.conv2"] = self.spent
        if source != out:
            self.product(self.side**2, source, out)

    def attention(self, path: str, keys: tuple[int, int] | None = None) -> None:
        """Attention from every position to `keys` (how many, how wide), by default to itself."""
        positions, width = self.side**2, self.channels
        key_count, key_width = keys or (positions, width)
        self.marks[path] = self.spent
        self.product(positions, width, width)
        self.product(key_count, key_width, width)
        self.marks[f"{path}.to_k"] = self.spent
        self.product(positions, width, key_count)
        self.marks[f"{path}.scores"] = self.spent
        self.product(key_count, key_width, width)
        self.product(positions, key_count, width)
        self.linear(width)

    def transformer(self, path: str) -> None:
        """One block between two projections. Heads split the width, so their number is free."""
        width = self.channels
        self.linear(width)
        self.attention(f"{path}.attn1")
        self.attention(f"{path}.attn2", self.text)
        self.linear(8 * width)  # GEGLU: a value and a gate, each four times as wide
        self.channels = 4 * width
        self.linear(width)
        self.linear(width)

    def vae_mid_block(self) -> None:
        self.resnet("mid_block.resnets[0]", self.channels)
        self.attention("mid_block.attentions[0]")
        self.resnet("mid_block.resnets[1]", self.channels)


def unet_flops(config: Mapping[str, Any], resolution_latent: int, tokens: int) -> UNetFlops:
    """Returns the cost of one row, latents `resolution_latent` squared, `tokens` text tokens.

    Raises `InvalidModel` for a UNet outside the SD 1.x and 2.x layouts, where the sites of
    Plug-and-Play (Tumanyan et al. 2023, decoder layers 4-11) do not exist.
    """
    marks = _walk_unet(config, resolution_latent, tokens)
    blocks = {n: _site(n, "resnets") for n in DECODER}
    attentions = {n: f"{_site(n, 'attentions')}.attn1" for n in ATTENDING}
    level, _ = map_level(resolution_latent, len(LAYOUT["up_block_types"]))
    read_last = f"{_site(LAST - level * PER_BLOCK, 'attentions')}.attn2"
    return UNetFlops(
        full=float(marks["end"]),
        deep=float(marks[blocks[LAST]] - marks["down_blocks[0].resnets[0]"]),
        to_feature={n: float(marks[f"{site}.conv2"]) for n, site in blocks.items()},
        feature_branch={
            n: float(marks[f"{site}.conv2"] - marks[site]) for n, site in blocks.items()
        },
        to_attention={n: float(marks[f"{site}.to_k"]) for n, site in attentions.items()},
        qk={n: float(marks[f"{site}.scores"] - marks[site]) for n, site in attentions.items()},
        to_maps=float(marks[f"{read_last}.scores"]),
    )


def _site(layer: int, kind: str) -> str:
    return f"up_blocks[{layer // PER_BLOCK}].{kind}[{layer % PER_BLOCK}]"


def _walk_unet(config: Mapping[str, Any], side: int, tokens: int) -> dict[str, int]:
    _check_layout(config)
    widths = config.get("block_out_channels", (320, 640, 1280, 1280))
    layers = LAYOUT["layers_per_block"]
    text = (tokens, config.get("cross_attention_dim", 1280))
    walk = _Walk(side, config.get("in_channels", 4), time_width=4 * widths[0], text=text)
    walk.product(1, widths[0] + walk.time_width, walk.time_width)  # time embedding, two layers
    walk.conv(widths[0])
    skips = [(walk.channels, walk.side)]
    for block, kind in enumerate(LAYOUT["down_block_types"]):
        for layer in range(layers):
            walk.resnet(f"down_blocks[{block}].resnets[{layer}]", widths[block])
            if kind.startswith("CrossAttn"):
                walk.transformer(f"down_blocks[{block}].attentions[{layer}]")
            skips.append((walk.channels, walk.side))
        if block < len(widths) - 1:
            walk.resample((walk.side + 1) // 2)
            skips.append((walk.channels, walk.side))

    walk.resnet("mid_block.resnets[0]", widths[-1])
    walk.transformer("mid_block.attentions[0]")
    walk.resnet("mid_block.resnets[1]", widths[-1])

    for block, kind in enumerate(LAYOUT["up_block_types"]):
        for layer in range(layers + 1):
            walk.channels += skips.pop()[0]
            walk.resnet(f"up_blocks[{block}].resnets[{layer}]", widths[-1 - block])
            if kind.startswith("CrossAttn"):
                walk.transformer(f"up_blocks[{block}].attentions[{layer}]")
        if skips:
            walk.resample(skips[-1][1])
    walk.conv(config.get("out_channels", 4))
    walk.marks["end"] = walk.spent
    return walk.marks


def vae_flops(config: Mapping[str, Any], resolution: int) -> tuple[float, float]:
    """Returns the cost of encoding and of decoding one picture of `resolution` squared."""
    widths = config.get("block_out_channels", (64,))
    layers = config.get("layers_per_block", 1)
    latent_channels = config.get("latent_channels", 4)
    encoder = _Walk(resolution, config.get("in_channels", 3))
    encoder.conv(widths[0])
    for block, width in enumerate(widths):
        for layer in range(layers):
            encoder.resnet(f"down_blocks[{block}].resnets[{layer}]", width)
        if block < len(widths) - 1:
            encoder.resample(encoder.side // 2)
    encoder.vae_mid_block()
    encoder.conv(2 * latent_channels)
    encoder.linear(2 * latent_channels)

    decoder = _Walk(encoder.side, latent_channels)
    decoder.linear(latent_channels)
    decoder.conv(widths[-1])
    decoder.vae_mid_block()
    for block, width in enumerate(reversed(widths)):
        for layer in range(layers + 1):
            decoder.resnet(f"up_blocks[{block}].resnets[{layer}]", width)
        if block < len(widths) - 1:
            decoder.resample(2 * decoder.side)
    decoder.conv(config.get("out_channels", 3))
    return float(encoder.spent), float(decoder.spent)


def _check_layout(config: Mapping[str, Any]) -> None:
    for key, usual in LAYOUT.items():
        found = config.get(key, usual)
        if (tuple(found) if isinstance(found, list) else found) != usual:
            raise InvalidModel(
                f"unet/config.json: {key} is {found!r}, expected {usual!r}",
                hint="name a model with the layout of Stable Diffusion 1.x or 2.x",
            )
