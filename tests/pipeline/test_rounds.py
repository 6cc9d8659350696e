"""Runs of many blocks: in rounds, and with few parts of results."""

from __future__ import annotations

import pytest

from pnp_batch import compaction, execution, pipeline, results, scoring, translation
from pnp_batch.evaluate import Settings, evaluate
from pnp_batch.storage import Storage
from tests.pipeline.conftest import Jobs, rows_of


@pytest.mark.long
def test_many_blocks_are_done_in_rounds_while_their_parts_stay_few(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "LARGEST_BLOCK", 1)
    monkeypatch.setattr(execution, "BLOCKS_A_ROUND", 25)
    monkeypatch.setattr(execution, "BLOCKS_A_WORKER", 1)
    monkeypatch.setattr(compaction, "WORTH", 8)
    jobs.picture("a.png", 1)
    rows = [{"image": "a.png", "source_prompt": f"{n}", "prompt": "x"} for n in range(60)]
    config = jobs.config(jobs.manifest(rows), method="copy", batch_size=1)
    seen: list[list[str]] = []
    result = pipeline.run(config, lambda _: seen.append(results.parts(Storage(config.output))))
    assert result.summary.done == 60
    assert len(rows_of(config.output)) == 60
    assert 8 < max(map(len, seen)) < 45
    assert len(results.parts(Storage(config.output))) == 1


@pytest.mark.long
def test_the_parts_of_an_evaluation_stay_few(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ROWS_A_BLOCK", 1)
    monkeypatch.setattr(compaction, "WORTH", 8)
    jobs.picture("a.png", 1)
    rows = [{"image": "a.png", "source_prompt": f"{n}", "prompt": "x"} for n in range(60)]
    output = jobs.run(jobs.manifest(rows), method="copy").output
    seen: list[list[str]] = []
    wanted = Settings(families=("pixels",), workers=1)
    evaluate(output, wanted, lambda _: seen.append(results.parts(Storage(output))))
    assert all(row["ssim"] == pytest.approx(1) for row in rows_of(output).values())
    assert len(rows_of(output)) == 60
    assert 8 < max(map(len, seen)) < 45
    assert len(results.parts(Storage(output))) == 1
