"""Comparisons of ways to translate the same pairs, with 95 % bootstrap intervals over the pairs.

In: for each way one dict of measures a pair, as `benchmark.score` makes it. Out: estimates, each
from the same fixed resamples, so that equal scores give equal numbers in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pnp_batch.world.benchmark import TEXT

ALL_TEXT = "text"
"""The mean of what a pair has of the text measures."""

RESAMPLES = 2000
Scores = Sequence[dict[str, float]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs and the interval that holds 95 % of its bootstrap resamples."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trade:
    """Two ways at one level of `held`: what each reaches in `measured`.

    Attributes:
        held, level: the measure that both have alike, and how much of it.
        inside: whether the other way's curve comes by that level; if not, its nearest end stands.
        measured, ours, theirs: the other measure, and what is reached in it.
        gain: ours - theirs.
    """

    held: str
    level: float
    inside: bool
    measured: str
    ours: float
    theirs: float
    gain: Estimate


def values(scores: Scores, measure: str) -> Floats:
    """One measure of every pair, NaN where a pair has none; `ALL_TEXT` is a measure here, too."""
    if measure == ALL_TEXT:
        told = [[one[name] for name in TEXT if name in one] for one in scores]
        return np.array([np.mean(own) for own in told])
    return np.array([one.get(measure, np.nan) for one in scores])


def mean(scores: Scores, measure: str) -> Estimate:
    """The mean of a measure over the pairs that have it."""
    return estimated(values(scores, measure))


def difference(a: Scores, b: Scores, measure: str) -> Estimate:
    """The mean of ``a - b``, pair by pair."""
    return estimated(values(a, measure) - values(b, measure))


def trade(ours: Scores, curve: Sequence[Scores], held: str, measured: str) -> Trade:
    """Compares with a way that trades text for structure, where both have as much of `held`.

    Args:
        ours: the scores of one way.
        curve: the other's, at rising strengths; between them it is taken as linear.
        held, measured: `ALL_TEXT` and a measure of structure, or the other way round.
    """
    both = [[values(one, name) for one in (ours, *curve)] for name in (held, measured)]
    known = ~np.isnan(both).any(axis=(0, 1))
    levels, reached = (np.array(own)[:, known] for own in both)
    draws = _resampled(int(known.sum()))
    rising = held == ALL_TEXT
    drawn = zip(levels[:, draws].mean(-1).T, reached[:, draws].mean(-1).T, strict=True)
    gains = np.array([m[0] - _along(h, m, rising=rising) for h, m in drawn])
    level, shown = levels.mean(1), reached.mean(1)
    theirs = _along(level, shown, rising=rising)
    return Trade(
        held=held,
        level=float(level[0]),
        inside=bool(level[1:].min() <= level[0] <= level[1:].max()),
        measured=measured,
        ours=float(shown[0]),
        theirs=theirs,
        gain=_interval(float(shown[0]) - theirs, gains),
    )


def _along(held: Floats, measured: Floats, *, rising: bool) -> float:
    """What the curve measures where its `held` first comes to ours; ours stands first in both."""
    away = (held[1:] - held[0]) * (1 if rising else -1)
    curve, there = measured[1:], np.flatnonzero(away >= 0)
    after = int(there[0]) if len(there) else int(away.argmax())
    if after == 0 or not len(there):
        return float(curve[after])
    share = away[after - 1] / (away[after - 1] - away[after])
    return float(curve[after - 1] + share * (curve[after] - curve[after - 1]))


def estimated(found: Floats) -> Estimate:
    """The mean of some values and its interval; values that are NaN do not count."""
    found = found[~np.isnan(found)]
    return _interval(float(found.mean()), found[_resampled(len(found))].mean(1))


def _resampled(pairs: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(pairs, size=(RESAMPLES, pairs))


def _interval(centre: float, resampled: Floats) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(centre, float(low), float(high))
