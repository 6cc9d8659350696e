"""Structure against text: the scores of outputs in, means with intervals and their plot out.

Tumanyan et al., CVPR 2023, figure 5: how well a method follows the text, and how much of the
structure it keeps. Here for each method and each set of values that a sweep gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.report.plot import Axis, Point, scatter
from pnp_batch.report.reported import Reported
from pnp_batch.report.settings import settings
from pnp_batch.results import OK
from pnp_batch.scores import BY_NAME, LOWER, NEITHER, STRUCTURE, TEXT
from pnp_batch.world.compare import Estimate, mean

# Of more rows the bootstrap's interval is that of the normal distribution, and takes gigabytes.
MOST_RESAMPLED = 1_000


@dataclass(frozen=True)
class Level:
    """The rows of one output, method and setting.

    Attributes:
        name: as a page says it.
        series: levels of one output and method share it, and those of outputs that are named after
            their method, as a comparison names them.
        scores: of each score that a row has its mean, with the interval that holds it in 95 %.
    """

    name: str
    series: int
    rows: int
    scores: Mapping[str, Estimate]


def levels(outputs: Sequence[Reported]) -> list[Level]:
    """Summarises the scored rows of outputs."""
    found: list[Level] = []
    series: dict[tuple[str, str], int] = {}
    for told in (one for one in outputs if one.scores):
        good = told.table.filter(pc.equal(told.table["status"], OK))
        for method in sorted(set(good["method"].to_pylist()) - {None}):
            named = told.name == method or told.name.startswith((f"{method}-", f"{method}:"))
            number = series.setdefault(("" if named else told.name, method), len(series))
            name = method if len(outputs) == 1 else f"{told.name}: {method}"
            name = told.name if named and len(outputs) > 1 else name
            for setting, table in settings(good.filter(pc.equal(good["method"], method)), method):
                scores = estimates(table, told.scores)
                found.append(Level(name + setting, number, len(table), scores))
    return found


def estimates(table: pa.Table, names: Iterable[str]) -> dict[str, Estimate]:
    """The mean of each score that a row of a table has, with its interval."""
    found = {name: _estimate(table[name]) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def axes(told: Sequence[Level]) -> tuple[str, str] | None:
    """The scores of text and of structure that the plot is of: the first that all can have."""
    text = [n for n, s in BY_NAME.items() if s.kind == TEXT and s.better != NEITHER]
    structure = [n for n, s in BY_NAME.items() if s.kind == STRUCTURE]
    pairs = ((x, y) for x in text for y in structure)
    counts = {p: sum(p[0] in one.scores and p[1] in one.scores for one in told) for p in pairs}
    best = max(counts, key=lambda pair: counts[pair])
    return best if counts[best] else None


def plot(told: Sequence[Level], *, inline: bool = True) -> str | None:
    """The plot as an SVG element or a document; None without a score of each kind."""
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
    return scatter(points, across, up, inline=inline)


def _ends(one: Estimate) -> tuple[float, float]:
    return one.low, one.high


def title(name: str) -> str:
    """A score as axes and columns say it."""
    score = BY_NAME[name]
    if score.better == NEITHER:
        return score.title
    return f"{score.title} ({'less' if score.better == LOWER else 'more'} is better)"


def _estimate(column: pa.ChunkedArray) -> Estimate | None:
    values = column.drop_null().to_numpy().astype(float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if len(values) <= MOST_RESAMPLED:
        return mean([{"value": value} for value in values.tolist()], "value")
    centre, half = values.mean(), 1.96 * values.std() / np.sqrt(len(values))
    return Estimate(float(centre), float(centre - half), float(centre + half))
