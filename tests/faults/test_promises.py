"""Every promise in the short form: real runs, faults, and a judge that finds nothing."""

from __future__ import annotations

import pytest

from tests.faults.promise import EXPERIMENTS

pytestmark = [pytest.mark.faults, pytest.mark.slow]


# A node is lost in tests/cluster, too, and a worker by P2 and P9.
LONG = {"P11"}


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(one, marks=[pytest.mark.long] if one.promise in LONG else [])
        for one in EXPERIMENTS
    ],
    ids=lambda one: f"{one.promise}-{one.module}",
)
def test_the_promise_is_kept(experiment, tmp_path):
    outcome = experiment.run(tmp_path, long=False)
    assert outcome.findings == ()
    assert outcome.faults > 0 or experiment.promise == "P12"
