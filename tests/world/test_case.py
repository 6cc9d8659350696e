"""What was drawn and asked for, read back from columns; the benchmark as a manifest."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from pnp_batch.world import benchmark, caption, draw, random_spec, samples
from pnp_batch.world.case import as_json, case_of, may_change
from pnp_batch.world.drawing import recast
from pnp_batch.world.spec import COLOURLESS

SPEC = random_spec(random.Random(1), object="cat", colour="red", scene="sea", rendition="flat")


def test_captions_are_read_back():
    rng = random.Random(2)
    for _ in range(300):
        source, other = random_spec(rng), random_spec(rng)
        target = recast(source, colour=other.colour, scene=other.scene, rendition=other.rendition)
        found = case_of(as_json(source), caption(target))
        kept = source.colour if target.rendition in COLOURLESS else target.colour
        assert (found.source, found.target) == (source, recast(target, colour=kept))


def test_cases_of_the_benchmark_are_read_back():
    for case in benchmark.cases(16):
        found = case_of(as_json(case.source), case.prompt.upper())
        assert caption(found.target) == case.prompt
        assert found.source == case.source


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a photo of a cat", "not in the captions' words"),
        ("", "not in the captions' words"),
        ("a flat drawing of a red house on grass", "shows a cat, the prompt a house"),
    ],
)
def test_other_prompts_are_refused(prompt, told):
    with pytest.raises(ValueError, match=told):
        case_of(as_json(SPEC), prompt)


@pytest.mark.parametrize(
    "changes",
    [{"size": 1e9}, {"size": float("nan")}, {"x": "0.5"}, {"object": "dog"}, {"scene": ["sea"]},
     {"flip": 1}, {"seed": "a"}, {"more": 1}],
)  # fmt: skip
def test_other_specs_are_refused(changes):
    with pytest.raises(ValueError, match=r"none of|0\.\.1|flip|spec"):
        case_of(json.dumps({**asdict(SPEC), **changes}), caption(SPEC))


@pytest.mark.parametrize("world", ["", "[]", "{}", "[" * 2000, None, 5, "x" * 5000])
def test_other_texts_are_refused(world):
    with pytest.raises(ValueError, match=r"spec|JSON"):
        case_of(world, caption(SPEC))


def test_a_mask_says_where_the_picture_may_change():
    drawing = draw(SPEC)

    def mask(**changes):
        return may_change(case_of(as_json(SPEC), caption(recast(SPEC, **changes))))

    assert (mask(colour="blue") == drawing.mask).all()
    assert (mask(scene="snow") == ~drawing.mask).all()
    assert mask(rendition="oil").all()
    assert not mask().any()


def test_the_benchmark_as_a_manifest_says_all_that_scores_need(tmp_path):
    samples.benchmark_manifest(tmp_path / "world.parquet", 8)
    cases = benchmark.cases(8)
    rows = pq.read_table(tmp_path / "world.parquet").to_pylist()
    assert [row["row_id"] for row in rows] == [case.name for case in cases]
    for row, case in zip(rows, cases, strict=True):
        (prompt,) = row["prompt"]
        assert case_of(row["world"], prompt).source == case.source
        assert (row["kind"], row["source_caption"]) == (case.kind, caption(case.source))
        mask = np.asarray(samples.opened(row["mask"]["bytes"]))[..., 0] > 0
        assert (mask == may_change(case_of(row["world"], prompt))).all()


def test_the_shipped_sample_says_so_too():
    shipped, drawn = pq.read_table(samples.SHIPPED).to_pylist(), samples.shown_rows()
    for row, made in zip(shipped, drawn, strict=True):
        assert {k: v for k, v in row.items() if k not in ("image", "mask")} == {
            k: v for k, v in made.items() if k not in ("image", "mask")
        }
        masks = [np.asarray(samples.opened(one["mask"]["bytes"])) for one in (row, made)]
        assert (masks[0] == masks[1]).all()
