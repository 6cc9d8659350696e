"""Every promise in the short form: real runs, faults, and a judge that finds nothing."""

from __future__ import annotations

import pytest

from tests.faults.promise import EXPERIMENTS

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: f"{e.promise}-{e.module}")
def test_the_promise_is_kept(experiment, tmp_path):
    outcome = experiment.run(tmp_path, long=False)
    assert outcome.findings == ()
    assert outcome.faults > 0 or experiment.promise == "P12"
