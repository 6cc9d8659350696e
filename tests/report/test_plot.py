"""Plots: well-formed SVG, points where their numbers say, and names that stay text."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from pnp_batch.report.plot import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis, Point, scatter

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points, x, y):
    return ElementTree.fromstring(scatter(points, x, y))


def places(svg):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle")]


def test_points_stand_where_their_numbers_say():
    points = [Point("a", 1, 10), Point("b", 10, 20), Point("c", 100, 30)]
    x = Axis.around("cost", [p.x for p in points], by_ratio=True)
    y = Axis.around("quality", [p.y for p in points])
    (ax, ay), (bx, by), (cx, cy) = places(drawn(points, x, y))
    assert (bx - ax, by - ay) == pytest.approx((cx - bx, cy - by), abs=0.11)
    assert ax < bx < cx
    assert ay > by > cy  # upwards is less in an SVG


def test_an_interval_is_drawn_around_its_point():
    points = [Point("a", 1, 10, low=8, high=13), Point("b", 2, 11)]
    svg = drawn(points, Axis("x", 0, 3), Axis("y", 0, 20))
    (bar,) = svg.iter(f"{SVG}line")
    (x, y), _ = places(svg)
    assert float(bar.get("x1")) == float(bar.get("x2")) == x
    assert float(bar.get("y1")) > y > float(bar.get("y2"))


def test_the_line_goes_through_the_marked_points_from_left_to_right():
    points = [Point("a", 3, 1, marked=True), Point("b", 2, 2), Point("c", 1, 3, marked=True)]
    svg = drawn(points, Axis("x", 0, 4), Axis("y", 0, 4))
    (line,) = svg.iter(f"{SVG}polyline")
    found = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    a, _, c = places(svg)
    assert found == [c, a]


@pytest.mark.parametrize("by_ratio", [False, True])
def test_ticks_are_round_numbers_between_the_ends(by_ratio):
    axis = Axis.around("x", [18.2, 87.8], by_ratio=by_ratio)
    assert 2 <= len(axis.ticks()) <= 7
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks())
    assert all(f"{tick:.6g}".strip("0.")[:1] in set("123456789") for tick in axis.ticks())


def test_a_name_is_text():
    hostile = '<script>"&'
    svg = drawn([Point(hostile, 1, 1)], Axis(hostile, 0, 2), Axis("y", 0, 2))
    assert not list(svg.iter(f"{SVG}script"))
    assert [t.text for t in svg.iter(f"{SVG}text")].count(hostile) == 2


NAMES = (
    *("pnp", "pnp-mask", "p2p", "masactrl", "ddim", "sdedit-low", "sdedit-medium", "sdedit-high"),
    *("diffuseit", "vqgan-clip", "flexit", "text2live", "diffusionclip", "reconstruct", "copy"),
    "p2p:inversion=null-text:self_steps=0.6:cross_steps=0.4",
)


def clustered(spread):
    """Sixteen points, the first in the middle and each of the others somewhere around it."""
    places = [(math.cos(2.4 * n) * n, math.sin(2.4 * n) * n) for n in range(len(NAMES))]
    return [
        Point(name, 0.5 + spread * x, 0.5 + spread * y)
        for name, (x, y) in zip(NAMES, places, strict=True)
    ]


@pytest.mark.parametrize("spread", [0.02, 0.004, 0.001, 0.0])
def test_names_of_many_points_cover_neither_each_other_nor_a_point(spread):
    svg = drawn(clustered(spread), Axis("x", 0, 1), Axis("y", 0, 1))
    texts = [text for text in svg.iter(f"{SVG}text") if text.get("class") == "name"]
    assert [text.text for text in texts[:15]] == list(NAMES[:15])
    assert texts[15].text == "p2p:inversion=null-text:self_steps=…"
    boxes = [(float(t.get("x")), float(t.get("y")), 7 * len(t.text)) for t in texts]
    for number, (left, base, wide) in enumerate(boxes):
        assert left >= LEFT
        assert left + wide <= WIDTH
        assert base - 11 >= TOP
        assert base <= HEIGHT - BOTTOM
        for other_left, other_base, other_wide in boxes[:number]:
            apart = left >= other_left + other_wide or other_left >= left + wide
            assert apart or abs(base - other_base) >= 15
        for x, y in places(svg):
            assert not (left - 4 < x < left + wide + 4 and base - 11 - 4 < y < base + 4 + 4)


def test_a_name_that_stands_away_from_its_point_is_led_to_it():
    points = clustered(0.0)
    svg = drawn(points, Axis("x", 0, 1), Axis("y", 0, 1))
    leads = [path for path in svg.iter(f"{SVG}path") if path.get("class") == "lead"]
    at = "M{:.1f} {:.1f}L".format(*places(svg)[0])
    assert len(leads) >= 8
    assert all(lead.get("d").startswith(at) for lead in leads)
    alone = drawn(points[:1], Axis("x", 0, 1), Axis("y", 0, 1))
    assert not [path for path in alone.iter(f"{SVG}path") if path.get("class") == "lead"]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_names_of_points_in_a_corner_stay_inside(x, y):
    svg = drawn([Point("a name of some length", x, y)], Axis("x", 0, 1), Axis("y", 0, 1))
    (name,) = (text for text in svg.iter(f"{SVG}text") if text.get("class") == "name")
    left, base = float(name.get("x")), float(name.get("y"))
    assert LEFT <= left <= WIDTH - 7 * len(name.text)
    assert TOP + 11 <= base <= HEIGHT - BOTTOM
