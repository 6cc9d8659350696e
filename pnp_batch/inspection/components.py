"""Principal components: rows of features in, three numbers a row out, and these as colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

COUNT = 3
# Colours span what lies between these quantiles of a component.
LOWEST, HIGHEST = 0.01, 0.99
# A component with less of the variance is rounding.
LEAST = 1e-10


@dataclass(frozen=True)
class Components:
    """The leading principal components of N rows.

    Attributes:
        scores: of each row, float64 (N, 3); what there is no component for is 0.
        explained: each component's share of the variance, the largest first.
    """

    scores: torch.Tensor
    explained: tuple[float, ...]

    def colours(self) -> torch.Tensor:
        """The components as red, green and blue from 0 to 1, (N, 3)."""
        low, high = (self.scores.quantile(q, dim=0) for q in (LOWEST, HIGHEST))
        span = high - low
        scaled: torch.Tensor = (self.scores - low) / span.where(span > 0, 1.0)
        return scaled.where(span > 0, 0.5).clamp(0, 1)


def principal(rows: torch.Tensor) -> Components:
    """The three leading principal components of rows (N, C), exact, in float64.

    The sign of each is that of its largest loading, so that neither the order of the rows nor the
    solver's choice turns a colour round.
    """
    centred = rows.double() - rows.double().mean(dim=0)
    wide = centred.shape[1] > centred.shape[0]
    narrow = centred.T if wide else centred
    variances, vectors = torch.linalg.eigh(narrow.T @ narrow)
    variances, vectors = variances.flip(0)[:COUNT], vectors.flip(1)[:, :COUNT]
    total = float(centred.square().sum())
    variances = variances.where(variances > LEAST * total, 0.0)
    loadings = centred.T @ vectors if wide else vectors
    largest = loadings.gather(0, loadings.abs().argmax(dim=0, keepdim=True))
    found = vectors * variances.sqrt() if wide else centred @ vectors.where(variances > 0, 0.0)
    scores = torch.zeros(len(centred), COUNT, dtype=torch.float64)
    scores[:, : found.shape[1]] = found * largest.sign()
    shares = [float(v) / total if total else 0.0 for v in variances]
    return Components(scores, tuple(shares + [0.0] * (COUNT - len(shares))))
