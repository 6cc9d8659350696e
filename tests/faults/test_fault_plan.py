"""The plan of the fault proxy: which requests meet which faults."""

from __future__ import annotations

import pytest

from tests.faults.plan import Fault, Kind, Plan

pytestmark = pytest.mark.faults


def test_a_share_is_drawn_from_the_seed():
    def drawn(seed):
        plan = Plan([Fault(Kind.SLOW_DOWN, share=0.1, seed=seed)])
        return [bool(plan.meets("GET", "/b/k")) for _ in range(2000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 120 < sum(drawn(1)) < 280


def test_several_faults_met_at_once_are_all_delays_and_the_first_harm():
    late, reset, error = Fault(Kind.LATE), Fault(Kind.RESET), Fault(Kind.ERROR)
    assert Plan([reset, late, error]).meets("PUT", "/b/k") == [late, reset]


@pytest.mark.parametrize(
    ("fault", "matches"),
    [
        (Fault(Kind.RESET), True),
        (Fault(Kind.RESET, method="PUT"), False),
        (Fault(Kind.RESET, path="/b/results/*.parquet"), True),
        (Fault(Kind.RESET, path="/b/images/*"), False),
        (Fault(Kind.RESET, query="*id=1*"), True),
        (Fault(Kind.RESET, query=""), False),
        (Fault(Kind.RESET, between=(3600, 7200)), False),
    ],
)
def test_a_fault_says_whom_it_means(fault, matches):
    assert bool(Plan([fault]).meets("GET", "/b/results/1%202.parquet?x-id=1")) == matches
