"""The best linear autoencoder, found in minutes and installed in an `AutoencoderKL`'s direct path.

From default weights a small autoencoder needs hours until hue reaches its latents; started from
here it reconstructs well at once, and training only has to improve on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

GROUPS = 4
INNER = 28
OUTER = 4
LOUD = 12.0
LOG_VARIANCE = -6.0


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """A convolution without bias that starts orthogonal."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer


class LinearAutoencoder(nn.Module):
    """Only the convolutions on the direct path of an `AutoencoderKL` of widths (16, 32, 64)."""

    def __init__(self, channels: int) -> None:
        """``channels`` is the number of latent channels."""
        super().__init__()
        torch.manual_seed(0)
        self.inward = nn.ModuleList(
            [
                convolution(3, 16, 3, padding=1),
                convolution(16, 16, 3, stride=2),
                convolution(16, 32, 1),
                convolution(32, 32, 3, stride=2),
                convolution(32, INNER, 1),
                convolution(INNER, channels, 3, padding=1),
            ]
        )
        self.outward = nn.ModuleList(
            [
                convolution(channels, 64, 3, padding=1),
                convolution(64, 64, 3, padding=1),
                convolution(64, 32, 1),
                convolution(32, 32, 3, padding=1),
                convolution(32, OUTER, 1),
                convolution(OUTER, 3, 3, padding=1),
            ]
        )
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))

    def inner(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) up to the last convolution of the encoder, (n, 28, h/4, w/4)."""
        for layer in list(self.inward)[:-1]:
            x = layer(F.pad(x, (0, 1, 0, 1)) if layer.stride == (2, 2) else x)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Pictures to latents (n, channels, h/4, w/4)."""
        latents: Tensor = self.inward[-1](self.inner(x))
        return latents

    def outer(self, z: Tensor) -> Tensor:
        """Latents up to the last convolution of the decoder, (n, 4, h, w)."""
        first, *rest = list(self.outward)[:-1]
        z = first(z)
        for k, layer in enumerate(rest):
            z = layer(F.interpolate(z, scale_factor=2.0) if k % 2 == 0 else z)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures."""
        pictures: Tensor = self.outward[-1](self.outer(z)) + self.shift
        return pictures


class LinearTask:
    """Plain squared error on crops of half the side."""

    def __init__(self, pictures: Tensor, held_out: Tensor, channels: int, batch: int = 24) -> None:
        """uint8 pictures (n, 3, 64, 64), kept as they are until drawn into a batch."""
        self.pictures, self.held_out, self.size = pictures, held_out, batch
        self.module: nn.Module = LinearAutoencoder(channels)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch of random crops."""
        index = torch.randint(len(self.pictures), (self.size,), generator=generator)
        top, left = (4 * int(v) for v in torch.randint(9, (2,), generator=generator))
        x = floats(self.pictures[index, :, top : top + 32, left : left + 32])
        error = (through(self.module, x) - x).square().mean()
        return error, {"psnr": float(-10 * torch.log10(error.detach() / 4))}

    @torch.no_grad()
    def measure(self, average: nn.Module) -> dict[str, float]:
        """PSNR on held-out pictures."""
        x = floats(self.held_out)
        mse = (through(average, x).clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
        return {"held_out_psnr": float((-10 * mse.log10()).mean())}


def floats(pictures: Tensor) -> Tensor:
    """uint8 pictures as floats from -1 to 1."""
    return pictures.float() / 127.5 - 1


def through(module: nn.Module, x: Tensor) -> Tensor:
    """Pictures through a linear autoencoder."""
    assert isinstance(module, LinearAutoencoder)
    return module.decode(module.encode(x))


@torch.no_grad()
def install(linear: LinearAutoencoder, vae: AutoencoderKL, pictures: Tensor) -> None:
    """Makes ``vae`` compute what ``linear`` computes; ``pictures`` (n, 3, 64, 64) set the scales.

    Residual branches start silent. The normalisation and SiLU before each last convolution become
    transparent: each group holds values with both signs, since silu(x) - silu(-x) = x, and a loud
    constant with both signs, so that its mean is 0 and its deviation alike for every picture.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
    encoder, decoder = vae.encoder, vae.decoder
    down, up = encoder.down_blocks, decoder.up_blocks
    for layer, source in (
        (encoder.conv_in, linear.inward[0]),
        (down[0].downsamplers[0].conv, linear.inward[1]),
        (down[1].resnets[0].conv_shortcut, linear.inward[2]),
        (down[1].downsamplers[0].conv, linear.inward[3]),
        (decoder.conv_in, linear.outward[0]),
        (up[0].upsamplers[0].conv, linear.outward[1]),
        (up[1].resnets[0].conv_shortcut, linear.outward[2]),
        (up[1].upsamplers[0].conv, linear.outward[3]),
    ):
        layer.weight.copy_(source.weight)
    inner, outer = linear.inner(pictures), linear.outer(linear.encode(pictures))
    channels = len(linear.inward[5].weight)  # type: ignore[arg-type]
    last = torch.zeros_like(encoder.conv_out.weight)
    ending = Ending(down[2].resnets[0].conv_shortcut, encoder.conv_out)
    ending.lay(linear.inward[4].weight, linear.inward[5].weight, inner, last)  # type: ignore[arg-type]
    last = torch.zeros_like(decoder.conv_out.weight)
    ending = Ending(up[2].resnets[0].conv_shortcut, decoder.conv_out)
    ending.lay(linear.outward[4].weight, linear.outward[5].weight, outer, last)  # type: ignore[arg-type]
    decoder.conv_out.bias.copy_(linear.shift.flatten())
    set_frame(linear, vae, linear.encode(pictures), channels)


@dataclass(frozen=True)
class Ending:
    """The shortcut that feeds a last normalisation, and the convolution after that."""

    shortcut: nn.Conv2d
    last: nn.Conv2d

    def lay(self, before: Tensor, after: Tensor, values: Tensor, weight: Tensor) -> None:
        """Installs the linear maps ``before`` and ``after``, between which ``values`` were seen."""
        self.shortcut.weight.zero_()
        width = self.shortcut.weight.shape[0] // GROUPS
        share = (width - 2) // 2
        rms = values.square().mean((0, 2, 3)).sqrt()
        loud = LOUD if share > 1 else LOUD / 2
        for group in range(GROUPS):
            start = group * width
            mine = range(group * share, min(len(before), (group + 1) * share))
            power = (2 * loud**2 + 2 * len(mine)) / width
            for k, source in enumerate(mine):
                for sign, place in ((1, start + 2 * k), (-1, start + 2 * k + 1)):
                    self.shortcut.weight[place] = sign * before[source] / rms[source]
                    weight[: len(after), place] = sign * after[:, source] * rms[source] * power**0.5
            self.shortcut.bias[start + width - 2] = loud  # type: ignore[index]
            self.shortcut.bias[start + width - 1] = -loud  # type: ignore[index]
        self.last.weight.copy_(weight)


def set_frame(
    linear: LinearAutoencoder, vae: AutoencoderKL, latents: Tensor, channels: int
) -> None:
    """Turns the latents so that their channels are independent, the strongest in the picture first.

    Each gets the square root of its deviation: halfway between pixels, where detail drowns in the
    noise, and white, where it counts as much as colour. Mean 0, mean square 1.
    """
    flat = latents.transpose(0, 1).reshape(channels, -1)
    impulses = torch.zeros(channels, channels, 9, 9)
    impulses[torch.arange(channels), torch.arange(channels), 4, 4] = 1
    response = (linear.decode(impulses) - linear.shift).flatten(1)
    values, vectors = torch.linalg.eigh(response @ response.T)
    root = vectors @ values.clamp_min(1e-8).sqrt().diag() @ vectors.T
    power, turn = torch.linalg.eigh(root @ torch.cov(flat) @ root)
    power, turn = power.flip(0), turn.flip(1)
    scale = power**-0.25
    scale = scale / (power * scale**2).mean().sqrt()
    frame = scale[:, None] * (turn.T @ root)
    mean = flat.mean(1)
    vae.quant_conv.weight.zero_()
    vae.quant_conv.weight[:channels, :channels, 0, 0] = frame
    vae.quant_conv.bias[:channels] = -frame @ mean
    vae.quant_conv.bias[channels:] = LOG_VARIANCE
    vae.post_quant_conv.weight[:, :, 0, 0] = torch.linalg.inv(frame)
    vae.post_quant_conv.bias.copy_(mean)
