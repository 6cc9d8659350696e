"""The measures agree with what true drawings show, and the benchmark is held out and fair."""

import random

import numpy as np
import pytest

from pnp_batch.training import data
from pnp_batch.world import benchmark, compare, draw, measures, random_spec, samples
from pnp_batch.world.drawing import recast

DRAWN = 24


def drawings(**fixed):
    return [draw(random_spec(random.Random(f"measure/{k}"), **fixed)) for k in range(DRAWN)]


def share(hits):
    return float(np.mean(list(hits)))


@pytest.mark.parametrize("rendition", ["oil", "neon"])
def test_colour_is_read(rendition):
    seen = drawings(rendition=rendition)
    hits = (
        measures.read_colour(np.asarray(d.image), d.mask, rendition) == d.spec.colour for d in seen
    )
    assert share(hits) >= 0.9


@pytest.mark.parametrize("rendition", ["flat", "sketch"])
def test_scene_is_read(rendition):
    seen = drawings(rendition=rendition)
    hits = (
        measures.read_scene(np.asarray(d.image), d.mask, rendition) == d.spec.scene for d in seen
    )
    assert share(hits) >= 0.9


def test_rendition_is_read():
    hits = (measures.read_rendition(np.asarray(d.image)) == d.spec.rendition for d in drawings())
    assert share(hits) >= 0.9


def test_masks_are_read_where_they_can_be():
    seen = [d for d in drawings(rendition="flat") if benchmark.has_readable_mask(d.spec)]
    assert len(seen) >= 0.7 * DRAWN
    found = [measures.mask_iou(measures.read_mask(np.asarray(d.image)), d.mask) for d in seen]
    assert np.mean(found) >= 0.9


def test_edges_tell_the_same_structure_from_another():
    flat = drawings(rendition="flat", size=0.38)
    same = [np.asarray(draw(recast(d.spec, rendition="sketch")).image) for d in flat]
    pictures = [np.asarray(d.image) for d in flat]
    alike = [measures.edge_correlation(a, b) for a, b in zip(pictures, same, strict=True)]
    others = [measures.edge_correlation(a, b) for a, b in zip(pictures, same[1:], strict=False)]
    assert np.mean(alike) > 0.6
    assert np.mean(others) < 0.4
    assert measures.edge_correlation(pictures[0], pictures[0]) == pytest.approx(1)


def test_a_blank_picture_has_no_structure():
    blank = np.full((64, 64, 3), 128, np.uint8)
    assert measures.edge_correlation(blank, np.asarray(drawings()[0].image)) == 0


def test_the_benchmark_is_large_varied_and_held_out():
    pairs = benchmark.cases(64)
    assert len({p.name for p in pairs}) == 64
    assert {p.kind for p in pairs} == set(benchmark.KINDS)
    assert len({p.source.object for p in pairs}) == 12
    assert all(p.source != p.target for p in pairs)
    assert {p.source.rendition for p in pairs if p.kind == "sketch"} == {"sketch"}
    training = {spec.seed for chunk in range(24) for spec in data.specs(chunk)}
    assert not training & {p.source.seed for p in pairs}
    assert benchmark.cases(8) == pairs[:8]


def test_true_targets_score_high_and_sources_do_not():
    pairs = benchmark.cases(12)
    true = [
        benchmark.score(p, np.asarray(d.image))
        for p, d in zip(pairs, benchmark.true_targets(pairs), strict=True)
    ]
    same = [benchmark.score(p, np.asarray(draw(p.source).image)) for p in pairs]
    for name in benchmark.TEXT:
        assert compare.mean(true, name).mean >= 0.9
    assert compare.mean(same, "edge_correlation").mean == pytest.approx(1)
    assert compare.mean(same, compare.ALL_TEXT).mean < 0.7
    assert compare.difference(true, same, "scene").low > 0


def test_the_benchmark_as_a_manifest():
    rows = list(samples.rows_of(benchmark.cases(2)))
    assert rows[0]["prompt"] == [benchmark.case(0).prompt]
