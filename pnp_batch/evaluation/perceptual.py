"""LPIPS with SqueezeNet (Zhang et al., arXiv 1801.03924): a distance as people see it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from pnp_batch.errors import InvalidModel
from pnp_batch.evaluation.pair import Found, NotScored, Pair, pixels
from pnp_batch.models.networks import SQUEEZENET_URL, Network

# Where the network is tapped, as indices into torchvision's `features`.
TAPS = (0, 2, 5, 8, 10, 11, 12, 13)
# Squeezed and expanded channels of the fire modules, by their index in `features`.
FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)} | {
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
EPS = 1e-8  # where torchmetrics has it
# LPIPS's own scaling of pixels in -1..1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al., arXiv 1602.07360), with torchvision's names."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) in, (B, 2 x expanded, h, w) out."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class Perceptual:
    """LPIPS, `squeeze` version 0.1; torchmetrics carries its linear weights.

    Args:
        network: a file with SqueezeNet 1.1's state, as torchvision saves it.
        device: where it runs.

    Raises:
        InvalidModel: the file is of another kind.
    """

    name = "lpips"
    scores = ("lpips",)

    def __init__(self, network: Network, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._features = _features(network).to(self._device)
        self._lines = _lines(self._device)

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, those of one size in one batch."""
        found: list[Found] = [p.source if isinstance(p.source, NotScored) else 0.0 for p in pairs]
        alike: dict[tuple[int, int], list[int]] = {}
        for number, pair in enumerate(pairs):
            if not isinstance(pair.source, NotScored):
                alike.setdefault(pair.output.size, []).append(number)
        for numbers in alike.values():
            sides = zip(*((pairs[n].output, pairs[n].source) for n in numbers), strict=True)
            one, other = (torch.cat([pixels(image) for image in side]) for side in sides)
            for number, distance in zip(numbers, self.distances(one, other), strict=True):
                found[number] = distance
        return [{"lpips": one} for one in found]

    @torch.inference_mode()
    def distances(self, one: torch.Tensor, other: torch.Tensor) -> list[float]:
        """LPIPS of pictures (B, 3, h, w) in 0..1, pair by pair."""
        total = torch.zeros(len(one), device=self._device)
        for a, b, line in zip(self._met(one), self._met(other), self._lines, strict=True):
            total += (((a - b) ** 2) * line).sum(1).mean(dim=(1, 2))
        return [float(distance) for distance in total]

    def _met(self, x: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = ((2 * x - 1 - shift) / scale).to(self._device)
        met = []
        for first, last in pairwise(TAPS):
            x = self._features[first:last](x)
            met.append(x / (x.pow(2).sum(1, keepdim=True) + EPS).sqrt())
        return met


def _features(network: Network) -> nn.Sequential:
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
    layers += [Fire(*FIRES[n]) if n in FIRES else pool for n in range(2, TAPS[-1])]
    features = nn.Sequential(*layers).eval().requires_grad_(False)
    prefix = "features."
    try:
        state = torch.load(network.path, map_location="cpu", weights_only=True)
        own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        features.load_state_dict(own)
    except (RuntimeError, UnpicklingError, EOFError, AttributeError) as error:
        raise InvalidModel(
            f"--lpips {network.name}: not the weights of torchvision's squeezenet1_1",
            f"give the file that lies at {SQUEEZENET_URL}",
        ) from error
    return features


def _lines(device: torch.device) -> list[torch.Tensor]:
    """The weights of each tap's channels, (1, C, 1, 1)."""
    folder = Path(str(torchmetrics.__file__)).parent / "functional" / "image" / "lpips_models"
    stored: dict[str, Any] = torch.load(
        folder / "squeeze.pth", map_location="cpu", weights_only=True
    )
    return [stored[f"lin{n}.model.1.weight"].to(device) for n in range(len(TAPS) - 1)]
