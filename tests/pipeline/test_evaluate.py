"""`evaluate` as a command: scores as columns, only what is missing, n/a with its reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pnp_batch import pipeline
from pnp_batch.scores import REASON, SCORED_WITH
from pnp_batch.storage import Storage
from tests.pipeline.conftest import Jobs, rows_of
from tests.pipeline.test_commands import call

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.ray

FAMILIES = ("--metrics", "clip,pixels,background", "--clip", "demo", "--workers", "1")


def scores(row: dict[str, Any]) -> dict[str, float | None]:
    return {name: row[name] for name in ("clip_similarity", "ssim", "background_mse")}


def test_an_output_is_scored_once_and_scores_outlive_what_comes_after(
    jobs: Jobs, s3: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.picture("a.png", 1)
    jobs.picture("b.png", 2)
    half = [number for line in range(512) for number in (512 * line, 256)]
    rows = [
        {"row_id": "a", "image": "a.png", "prompt": "a cat", "kind": "one"},
        {"row_id": "b", "image": "b.png", "prompt": "a dog", "kind": "two", "mask": half},
        {"row_id": "gone", "image": "c.png", "prompt": "a fish", "kind": "two"},
    ]
    rows[1]["source_caption"] = "a tree"
    manifest, output = jobs.manifest(rows), s3("evaluated")
    jobs.run(manifest, output, method="copy")

    def evaluated(*more: str) -> dict[str, Any]:
        capsys.readouterr()
        assert call("evaluate", output, *FAMILIES, *more, "--json") == 0
        body: dict[str, Any] = json.loads(capsys.readouterr().out)
        return body

    first = evaluated()
    assert (first["rows"], first["scored"], first["exit_code"]) == (2, 2, 0)
    assert first["networks"]["clip"].startswith("demo (")
    by_method, by_kind = first["tables"]
    (line,) = by_method["lines"]
    assert (by_method["by"], line["group"], line["rows"]) == ("method", "copy", 2)
    told = line["scores"]["clip_similarity"]
    there = rows_of(output)
    expected = np.mean([there[name]["clip_similarity"] for name in "ab"])
    assert told["low"] <= told["mean"] <= told["high"]
    assert told["mean"] == pytest.approx(expected)
    assert (by_kind["by"], [one["group"] for one in by_kind["lines"]]) == ("kind", ["one", "two"])
    assert json.loads(Storage(output).read("evaluation.json")) == first

    assert there["a"]["ssim"] == pytest.approx(1)  # a copy is its guidance image
    assert (there["b"]["background_mse"], there["b"]["background_psnr"]) == (0, None)
    reasons = {name: json.loads(row[REASON]) for name, row in there.items() if row[REASON]}
    assert reasons["a"]["background_mse"] == "the row has no mask"
    assert "source_prompt" in reasons["a"]["clip_direction"]
    assert "infinite" in reasons["b"]["background_psnr"]
    assert isinstance(there["b"]["clip_source_similarity"], float)
    assert (there["gone"]["clip_similarity"], there["gone"][SCORED_WITH]) == (None, None)

    assert evaluated()["scored"] == 0
    assert rows_of(output) == there

    jobs.picture("c.png", 3)
    assert call("retry", output) == 0
    again = pipeline.run(jobs.config(manifest, output, method="copy"))
    assert (again.summary.done, again.progress.session_done) == (3, 0)
    kept = rows_of(output)
    assert [scores(kept[name]) for name in "ab"] == [scores(there[name]) for name in "ab"]
    assert kept["gone"]["clip_similarity"] is None

    Storage(output).delete(kept["a"]["output"])  # has its scores: nobody looks again
    assert evaluated()["scored"] == 1
    assert isinstance(rows_of(output)["gone"]["clip_similarity"], float)
    for command in ("status", "gc"):
        assert call(command, output) == 0
    told = capsys.readouterr().out
    assert "3 done, 0 failed, 0 missing of 3" in told
    assert "1 images are gone" in told
    assert call("report", output) == 0


def test_what_cannot_be_evaluated_is_refused(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32)).save(jobs.folder / "a.png")
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x", "ssim": 1}])
    output = jobs.run(manifest, method="copy").output

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert call("evaluate", *arguments) == 4
        return capsys.readouterr().err

    assert "holds no run.json" in refused(str(jobs.folder / "nowhere"))
    assert "--metrics pixel: unknown" in refused(output, "--metrics", "pixel")
    assert "did you mean 'pixels'" in refused(output, "--metrics", "pixel")
    assert "column 'ssim' has the name of a score" in refused(output, "--metrics", "pixels")
    assert "no such column" in refused(output, "--metrics", "background", "--by", "promt")
    assert "no such file" in refused(output, "--metrics", "lpips", "--lpips", "nowhere.pth")
