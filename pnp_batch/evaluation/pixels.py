"""Scores of pixels and edges; no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio as psnr
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from pnp_batch.evaluation.pair import Found, NotScored, Pair, pixels
from pnp_batch.world.measures import edge_correlation

SAME = NotScored("output and guidance image are the same there, PSNR would be infinite")


class Pixels:
    """PSNR and SSIM at data range 1, and the correlation of edges."""

    name = "pixels"
    scores = ("psnr", "ssim", "edge_correlation")

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, each by itself."""
        return [self._score(pair) for pair in pairs]

    def _score(self, pair: Pair) -> dict[str, Found]:
        if isinstance(pair.source, NotScored):
            return dict.fromkeys(self.scores, pair.source)
        edges = edge_correlation(np.asarray(pair.source), np.asarray(pair.output))
        return {
            **compared(pixels(pair.output), pixels(pair.source)),
            "edge_correlation": edges,
        }


def compared(one: torch.Tensor, other: torch.Tensor) -> dict[str, Found]:
    """PSNR and SSIM of two pictures (1, 3, h, w) in 0..1; SSIM's window is Gaussian, sigma 1.5."""
    one, other = one.double(), other.double()  # of flat regions float32 leaves little variance
    similar = ssim(one, other, data_range=1.0)
    assert isinstance(similar, torch.Tensor)  # a tuple only where the whole map is asked for
    return {
        "psnr": SAME if torch.equal(one, other) else float(psnr(one, other, data_range=1.0)),
        "ssim": float(similar),
    }
