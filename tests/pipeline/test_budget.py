"""A budget of hours ends a run in order, and is the output's, whoever runs it again."""

from __future__ import annotations

import pytest

from pnp_batch import pipeline, record
from pnp_batch.errors import EXIT_INTERRUPTED
from pnp_batch.storage import Storage
from tests.pipeline.conftest import Jobs

ROWS = 60
SECONDS = 3.0


def test_a_run_ends_in_order_once_its_budget_is_spent(jobs: Jobs) -> None:
    jobs.picture("a.png")
    rows = [{"image": "a.png", "prompt": f"prompt {n}", "row_id": f"r{n}"} for n in range(ROWS)]
    manifest, budget = jobs.manifest(rows), SECONDS / 3600
    ended = jobs.run(manifest, steps=50, batch_size=1, budget_hours=budget)
    assert (ended.state, ended.exit_code) == (record.SPENT, EXIT_INTERRUPTED)
    assert ended.summary.failed == 0
    assert ended.summary.done < ROWS
    there = record.read(Storage(ended.output))
    assert there is not None
    assert there.state == record.SPENT
    assert there.worker_seconds >= SECONDS
    with pytest.raises(pipeline.Interrupted, match="hours of workers are spent") as refused:
        jobs.run(manifest, steps=50, batch_size=1, budget_hours=budget)
    assert "--budget-hours" in refused.value.hint
    again = jobs.run(manifest, steps=50, batch_size=1, limit=ended.summary.done + 1)
    assert again.exit_code == 0
    after = record.read(Storage(ended.output))
    assert after is not None
    assert after.worker_seconds > there.worker_seconds  # what was spent before still counts
