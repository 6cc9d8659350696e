"""Structure against text: the scores of outputs in, means with intervals and their plot out.

Tumanyan et al., CVPR 2023, figure 5: how well a method follows the text, and how much of the
structure it keeps. Here for each method and each set of values that a sweep gave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.report.plot import Axis, Point, scatter
from pnp_batch.report.reported import Reported
from pnp_batch.results import OK
from pnp_batch.scores import BY_NAME, LOWER, NEITHER, STRUCTURE, TEXT
from pnp_batch.world.compare import Estimate, mean

# What a manifest may vary from row to row, and the most settings of it that are told apart.
SWEPT = ("guidance_scale", "pnp_f_t", "pnp_attn_t", "strength")
MOST_SETTINGS = 12
# Of more rows the bootstrap's interval is that of the normal distribution, and takes gigabytes.
MOST_RESAMPLED = 1_000


@dataclass(frozen=True)
class Level:
    """The rows of one output, method and setting.

    Attributes:
        name: as a page says it.
        series: levels of one output and method share it.
        scores: of each score that a row has its mean, with the interval that holds it in 95 %.
    """

    name: str
    series: int
    rows: int
    scores: Mapping[str, Estimate]


def levels(outputs: Sequence[Reported]) -> list[Level]:
    """Summarises the scored rows of outputs."""
    found: list[Level] = []
    series = 0
    for told in outputs:
        if not told.scores:
            continue
        good = told.table.filter(pc.equal(told.table["status"], OK))
        prefix = f"{told.name}: " if len(outputs) > 1 else ""
        for method in sorted(set(good["method"].to_pylist()) - {None}):
            own = good.filter(pc.equal(good["method"], method))
            for setting, table in _settings(own):
                scores = {name: _estimate(table[name]) for name in told.scores}
                known = {name: one for name, one in scores.items() if one is not None}
                found.append(Level(f"{prefix}{method}{setting}", series, len(table), known))
            series += 1
    return found


def axes(told: Sequence[Level]) -> tuple[str, str] | None:
    """The scores of text and of structure that the plot is of: the first that all can have."""
    text = [n for n, s in BY_NAME.items() if s.kind == TEXT and s.better != NEITHER]
    structure = [n for n, s in BY_NAME.items() if s.kind == STRUCTURE]
    pairs = ((x, y) for x in text for y in structure)
    counts = {p: sum(p[0] in one.scores and p[1] in one.scores for one in told) for p in pairs}
    best = max(counts, key=lambda pair: counts[pair])
    return best if counts[best] else None


def plot(told: Sequence[Level]) -> str | None:
    """The plot as an SVG element; None without a score of each kind."""
    chosen = axes(told)
    if chosen is None:
        return None
    both = [one for one in told if chosen[0] in one.scores and chosen[1] in one.scores]
    points = []
    for level in both:
        x, y = (level.scores[name] for name in chosen)
        point = Point(level.name, x.mean, y.mean, y.low, y.high, series=level.series)
        points.append(replace(point, left=x.low, right=x.high))
    across, up = (
        Axis.around(title(name), [end for one in both for end in _ends(one.scores[name])])
        for name in chosen
    )
    return scatter(points, across, up, inline=True)


def _ends(one: Estimate) -> tuple[float, float]:
    return one.low, one.high


def title(name: str) -> str:
    """A score as axes and columns say it."""
    score = BY_NAME[name]
    if score.better == NEITHER:
        return score.title
    return f"{score.title} ({'less' if score.better == LOWER else 'more'} is better)"


def _settings(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of a method by the values that vary among them."""
    varied = [name for name in SWEPT if pc.count_distinct(table[name], "only_valid").as_py() > 1]
    settings = table.select(varied).group_by(varied).aggregate([]).to_pylist() if varied else []
    if not 1 < len(settings) <= MOST_SETTINGS:
        yield "", table
        return
    for setting in sorted(settings, key=lambda one: [value or 0 for value in one.values()]):
        mask = np.ones(len(table), bool)
        for name, value in setting.items():
            same = pc.is_null(table[name]) if value is None else pc.equal(table[name], value)
            mask &= pc.fill_null(same, False).to_numpy()
        told = [f"{name} {value:g}" for name, value in setting.items() if value is not None]
        yield " " + ", ".join(told), table.filter(pa.array(mask))


def _estimate(column: pa.ChunkedArray) -> Estimate | None:
    values = column.drop_null().to_numpy().astype(float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if len(values) <= MOST_RESAMPLED:
        return mean([{"value": value} for value in values.tolist()], "value")
    centre, half = values.mean(), 1.96 * values.std() / np.sqrt(len(values))
    return Estimate(float(centre), float(centre - half), float(centre + half))
