"""The generator of Text2LIVE (Bar-Tal et al., arXiv 2204.02491): a picture in, an edit layer out.

A layer is colours and opacity, (B, 4, H, W): three channels in -1..1 and one in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, SKIPPED, SCALES = 64, 4, 5
GREEN = (0.0, 177 / 255, 64 / 255)


class Generator(nn.Module):
    """An encoder and decoder with narrow skips, its weights drawn with a generator.

    The published one, of seven scales and 128 channels, is that of Deep Image Prior (Ulyanov et
    al., arXiv 1711.10925). Its batch normalisation sees one picture, which makes it that of an
    instance.

    Args:
        side: of the pictures; there are no more scales than leave it 4 pixels.
        dice: draws the weights, on the CPU.
    """

    def __init__(self, side: int, dice: torch.Generator) -> None:
        super().__init__()
        scales = max(1, min(SCALES, (side // 4).bit_length() - 1))
        with torch.device("meta"):
            self.down = nn.ModuleList(_Down(WIDTH if n else 3) for n in range(scales))
            self.skip = nn.ModuleList(_layer(WIDTH if n else 3, SKIPPED, 1) for n in range(scales))
            self.up = nn.ModuleList(_Up() for _ in range(scales))
            self.out = nn.Conv2d(WIDTH, 4, 1)
        self.to_empty(device="cpu")
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=dice)
            else:  # of a normalisation, or a bias
                nn.init.constant_(parameter, float(name.endswith("1.weight")))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The colours (B, 3, H, W) and the opacity (B, 1, H, W) for pictures in -1..1."""
        x, skipped = image, []
        for down, skip in zip(self.down, self.skip, strict=True):
            skipped.append(skip(x))
            x = down(x)
        for up, beside in zip(reversed(self.up), reversed(skipped), strict=True):
            x = up(x, beside)
        layer = self.out(x).sigmoid()
        return 2 * layer[:, :3] - 1, layer[:, 3:]


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.halve, self.conv = _layer(channels, WIDTH, 3, stride=2), _layer(WIDTH, WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.halve(x))  # type: ignore[no-any-return]


class _Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = _layer(WIDTH + SKIPPED, WIDTH, 3), _layer(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        wide = F.interpolate(x, size=beside.shape[-2:], mode="bilinear")
        return self.mix(self.conv(torch.cat([beside, wide], dim=1)))  # type: ignore[no-any-return]


def _layer(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.GroupNorm(out, out), nn.LeakyReLU(0.2))


def painted(
    generators: Sequence[Generator], images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each generator's layer for its own of the pictures (B, 3, H, W): colours and opacity."""
    layers = [own(images[[n]]) for n, own in enumerate(generators)]
    colours, opacity = zip(*layers, strict=True)
    return torch.cat(colours), torch.cat(opacity)


def over(image: torch.Tensor, colours: torch.Tensor, opacity: torch.Tensor) -> torch.Tensor:
    """A layer over a picture, (B, 3, H, W)."""
    return opacity * colours + (1 - opacity) * image


def green(image: torch.Tensor) -> torch.Tensor:
    """A green screen as large as a picture."""
    screen = torch.tensor(GREEN, device=image.device, dtype=image.dtype).view(1, 3, 1, 1)
    return (2 * screen - 1).expand_as(image)


def sparsity(opacity: torch.Tensor) -> torch.Tensor:
    """Mean opacity, and mean of a squashed one, near 1 wherever there is some: L1 + L0 (eq. 6)."""
    squashed = 2 * (opacity * 5).sigmoid() - 1
    return opacity.mean((1, 2, 3)) + squashed.mean((1, 2, 3))
