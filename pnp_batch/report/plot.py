"""A scatter plot as SVG: points with names and intervals, and lines through some of them.

SVG needs no library, stays sharp, and follows the light or dark of the page around it. As a file it
brings its style; a page that holds it inline has `STYLE` among its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pnp_batch.report.labels import Box, placed

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 48
STYLE = (
    "text{font:13px sans-serif;fill:#555}.axis{stroke:#999;stroke-width:1}"
    ".bar{stroke:#999;stroke-width:1.5;opacity:.6}.dot{fill:#8a8a8a}.dot.named{fill:#c2410c}"
    ".line{fill:none;stroke:#c2410c;stroke-width:1.5;stroke-dasharray:5 4}"
    ".lead{stroke:#999;stroke-width:.75}"
    ".name{paint-order:stroke;stroke:Canvas;stroke-width:3px;stroke-linejoin:round}"
    "@media (prefers-color-scheme: dark){text{fill:#bbb}}"
)
# Of series; of like lightness, and apart for the colour-blind. The points' names tell them too.
COLOURS = (
    *("#c2410c", "#2563eb", "#0f9d58", "#a855f7", "#b7791f", "#0891b2"),
    *("#be185d", "#4d7c0f", "#64748b", "#854d0e"),
)
STYLE += "".join(
    f".dot.s{n}{{fill:{colour}}}.bar.s{n},.line.s{n}{{stroke:{colour}}}"
    for n, colour in enumerate(COLOURS)
)
DESCENT = 4  # of letters, below their line
LONGEST = 36  # letters of a name


@dataclass(frozen=True)
class Point:
    """One point of a plot.

    Attributes:
        name: written beside it.
        x, y: where it is.
        low, high: ends of an interval of y; None for none.
        marked: shown in colour; the line goes through the marked points.
        left, right: ends of an interval of x; None for none.
        series: points of one series have one colour and a line through them.
    """

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    marked: bool = False
    left: float | None = None
    right: float | None = None
    series: int | None = None

    @property
    def colour(self) -> str:
        """What the style calls its colour."""
        if self.series is not None:
            return f" s{self.series % len(COLOURS)}"
        return " named" if self.marked else ""


@dataclass(frozen=True)
class Axis:
    """One axis: its title, and the numbers at its ends, which it may run through by ratio."""

    title: str
    low: float
    high: float
    by_ratio: bool = False

    @classmethod
    def around(cls, title: str, values: Sequence[float], *, by_ratio: bool = False) -> Axis:
        """An axis that holds some values with a margin. Raises `ValueError` for no values."""
        low, high = min(values), max(values)
        if by_ratio:
            return cls(title, low / 1.15, high * 1.15, by_ratio=True)
        margin = 0.08 * (high - low) or 1.0
        return cls(title, low - margin, high + margin)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        low, high, at = self.low, self.high, value
        if self.by_ratio:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """About five round numbers on it."""
        if self.by_ratio:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            round_ones = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            return [tick for tick in round_ones if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, inline: bool = False) -> str:
    """An SVG document with the points on these axes, or an element without a style of its own."""
    title = escape(f"{y.title} over {x.title}")
    style = "" if inline else f"<style>:root{{color-scheme:light dark}}{STYLE}</style>"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{title}">{style}'
    )
    body = [*_axes(x, y), *_lines(points, x, y)]
    for point in points:
        body += _drawn(point, x, y)
    body += _named(points, x, y)
    return "\n".join([head, *body, "</svg>\n"])


def _lines(points: Sequence[Point], x: Axis, y: Axis) -> Iterator[str]:
    """A line through the marked points, and one through those of each series."""
    marked = [point for point in points if point.marked]
    series = sorted({point.series for point in points if point.series is not None})
    for own in (marked, *([p for p in points if p.series == number] for number in series)):
        if len(own) > 1:
            places = sorted(_place(point, x, y) for point in own)
            line = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
            yield f'<polyline class="line{own[0].colour}" points="{line}"/>'


def _place(point: Point, x: Axis, y: Axis) -> tuple[float, float]:
    return _across(x, point.x), _up(y, point.y)


def _across(x: Axis, value: float) -> float:
    return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)


def _up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)


def _axes(x: Axis, y: Axis) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    yield f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>'
    for tick in x.ticks():
        at = f'x="{_across(x, tick):.1f}" y="{floor + 18}"'
        yield f'<text {at} text-anchor="middle">{tick:g}</text>'
    for tick in y.ticks():
        yield f'<text x="{LEFT - 8}" y="{_up(y, tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>'
    at = f"14,{(TOP + floor) / 2}"
    turned = f'transform="translate({at})rotate(-90)"'
    yield f'<text {turned} text-anchor="middle">{escape(y.title)}</text>'


def _drawn(point: Point, x: Axis, y: Axis) -> Iterator[str]:
    across, up = _place(point, x, y)
    bar = f'<line class="bar{point.colour}"'
    if point.low is not None and point.high is not None:
        ends = f'y1="{_up(y, point.low):.1f}" y2="{_up(y, point.high):.1f}"'
        yield f'{bar} x1="{across:.1f}" x2="{across:.1f}" {ends}/>'
    if point.left is not None and point.right is not None:
        ends = f'x1="{_across(x, point.left):.1f}" x2="{_across(x, point.right):.1f}"'
        yield f'{bar} {ends} y1="{up:.1f}" y2="{up:.1f}"/>'
    yield f'<circle class="dot{point.colour}" cx="{across:.1f}" cy="{up:.1f}" r="4.5"/>'


def _named(points: Sequence[Point], x: Axis, y: Axis) -> Iterator[str]:
    """The points' names beside them, led to their points where they have no room there."""
    dots = [_place(point, x, y) for point in points]
    frame = Box(LEFT + 2, TOP, WIDTH - 2, HEIGHT - BOTTOM - 2)
    names = [_cut(point.name) for point in points]
    boxes = placed(dots, names, frame)
    for dot, box in zip(dots, boxes, strict=True):
        if not box.is_beside(*dot):
            across, up = box.nearest(*dot)
            yield f'<path class="lead" d="M{dot[0]:.1f} {dot[1]:.1f}L{across:.1f} {up:.1f}"/>'
    for name, box in zip(names, boxes, strict=True):
        at = f'x="{box.left:.1f}" y="{box.bottom - DESCENT:.1f}"'
        yield f'<text class="name" {at}>{escape(name)}</text>'


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
