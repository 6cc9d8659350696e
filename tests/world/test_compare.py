"""Comparisons over pairs, where their numbers are known; and the job that prints them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pnp_batch.world import compare
from pnp_batch.world.compare import ALL_TEXT

JOBS = Path(__file__).parents[2] / "jobs"


def scores(text: float, edges: float, pairs: int = 40) -> list[dict[str, float]]:
    """Pairs with these means, and a spread that all ways have in common."""
    spread = np.random.default_rng(1).normal(0, 0.1, pairs)
    spread -= spread.mean()
    return [{"scene": text + s, "colour": text + s, "edge_correlation": edges} for s in spread]


def test_an_interval_is_that_of_the_mean():
    found = compare.mean(scores(0.5, 0.3), "scene")
    assert found.mean == pytest.approx(0.5)
    width = 2 * 1.96 * np.std([one["scene"] for one in scores(0.5, 0.3)]) / 40**0.5
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_a_difference_is_taken_pair_by_pair():
    found = compare.difference(scores(0.7, 0.3), scores(0.5, 0.3), "scene")
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))


def test_pairs_without_a_measure_are_left_out():
    some = [{"scene": 1.0, "colour": 0.0}, {"scene": 0.0}, {"scene": 1.0, "colour": 1.0}]
    assert compare.mean(some, "colour").mean == pytest.approx(0.5)
    assert compare.mean(some, ALL_TEXT).mean == pytest.approx((0.5 + 0.0 + 1.0) / 3)


@pytest.mark.parametrize(
    ("held", "measured", "ours", "theirs", "inside"),
    [
        # Text .5 lies half way between the strengths with .4 and .6, whose edges are .6 and .2.
        (ALL_TEXT, "edge_correlation", (0.5, 0.55), 0.4, True),
        ("edge_correlation", ALL_TEXT, (0.5, 0.3), 0.55, True),
        (ALL_TEXT, "edge_correlation", (0.9, 0.55), 0.2, False),
        ("edge_correlation", ALL_TEXT, (0.5, 0.1), 0.6, False),
    ],
)
def test_a_trade_interpolates_along_the_strengths(held, measured, ours, theirs, inside):
    curve = [scores(0.2, 0.9), scores(0.4, 0.6), scores(0.6, 0.2)]
    found = compare.trade(scores(*ours), curve, held, measured)
    mine = ours[1] if held == ALL_TEXT else ours[0]
    assert found.inside == inside
    assert found.theirs == pytest.approx(theirs)
    assert found.ours == pytest.approx(mine)
    assert found.gain.mean == pytest.approx(mine - theirs)
    # What all ways have in common cancels: the interval is about what differs.
    assert found.gain.high - found.gain.low < 1e-6


def test_where_the_curve_comes_to_a_level_twice_the_weaker_strength_counts():
    curve = [scores(0.4, 0.9), scores(0.3, 0.6), scores(0.6, 0.2)]
    for text, edges in ((0.39, 0.9), (0.45, 0.4)):
        found = compare.trade(scores(text, 0.5), curve, ALL_TEXT, "edge_correlation")
        assert found.theirs == pytest.approx(edges)


@pytest.mark.slow
def test_the_job_measures_every_way_and_draws_the_pairs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(JOBS))
    job = importlib.import_module("measure_demo_model")
    sheet = tmp_path / "sheet.png"
    few = ["--pairs", "4", "--drawings", "4", "--steps", "2", "--sheet", str(sheet), "--json"]
    done = CliRunner().invoke(job.main, few, catch_exceptions=False)
    found = json.loads(done.stdout)
    assert set(found["scores"]) == {"source", *job.WAYS, "true target through the VAE"}
    kept = found["scores"]["sdedit 0"]["edge_correlation"]["mean"]
    assert 0.9 < kept < found["scores"]["source"]["edge_correlation"]["mean"] + 1e-9
    assert found["scores"]["true target through the VAE"]["text"]["mean"] > 0.8
    assert found["share_of_target"]["source"]["text"] < 0.7
    assert [trade["held"] for trade in found["pnp_over_sdedit"]].count(ALL_TEXT) == 2
    assert found["vae_psnr"] > 25
    assert 0 < found["influence"]["feature"]["701"] < 1
    with Image.open(sheet) as drawn:
        assert drawn.width > 1000
