"""What happened outside the mask: the same measures with the edited region blackened in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pnp_batch.evaluation.pair import Found, NotScored, Pair, pixels
from pnp_batch.evaluation.perceptual import Perceptual
from pnp_batch.evaluation.pixels import compared

NO_BACKGROUND = NotScored("the mask covers the whole picture")


class Background:
    """PIE-Bench's measures of the unedited region (Ju et al., arXiv 2310.01506).

    Both pictures are multiplied with the region, then compared whole: also the squared error is a
    mean over all pixels.

    Args:
        perceptual: computes LPIPS, or why nothing does.
    """

    name = "background"
    scores = ("background_lpips", "background_psnr", "background_ssim", "background_mse")

    def __init__(self, perceptual: Perceptual | NotScored) -> None:
        self._perceptual = perceptual

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, each by itself."""
        return [self._score(pair) for pair in pairs]

    def _score(self, pair: Pair) -> dict[str, Found]:
        if isinstance(pair.mask, NotScored):
            return dict.fromkeys(self.scores, pair.mask)
        if isinstance(pair.source, NotScored):
            return dict.fromkeys(self.scores, pair.source)
        if pair.mask.all():
            return dict.fromkeys(self.scores, NO_BACKGROUND)
        one, other = (_outside(pixels(image), pair.mask) for image in (pair.output, pair.source))
        near: Perceptual | Found = self._perceptual
        if isinstance(near, Perceptual):
            (near,) = near.distances(one, other)
        return {
            "background_lpips": near,
            **{f"background_{name}": value for name, value in compared(one, other).items()},
            "background_mse": float(((one - other) ** 2).mean()),
        }


def _outside(image: torch.Tensor, mask: NDArray[np.bool_]) -> torch.Tensor:
    return image * torch.from_numpy(~mask)
