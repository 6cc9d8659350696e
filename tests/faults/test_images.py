"""Spoilt image files end as pictures or row errors; the long form is `tests.faults.images`."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.images import Report, explode, fuzz, mutations
from tests.faults.watched import PICTURE, UNDECODABLE, WRONG, Limits, Watched
from tests.pictures import PNG, picture, saved

pytestmark = pytest.mark.faults


def test_mutated_pictures_are_pictures_or_row_errors_in_bounded_memory() -> None:
    report = Report()
    fuzz(400, seed=0, report=report)
    assert not report.wrong, report.text()
    kinds = [kind for tally in report.tallies.values() for kind in tally.kinds]
    assert min(kinds.count(PICTURE), kinds.count(UNDECODABLE)) > 100, "one side is not tried"


def test_files_that_cost_more_than_they_weigh_are_refused_in_time() -> None:
    report = Report()
    explode(report)
    assert not report.wrong, report.text()


def test_mutations_come_from_their_seed_alone() -> None:
    assert list(mutations(40, seed=3)) == list(mutations(40, seed=3))
    assert dict(mutations(40, seed=3)).values() != dict(mutations(40, seed=4)).values()


def test_the_watcher_sees_cost_and_death_and_goes_on() -> None:
    large = saved(picture(1000, 1000), "PNG")
    with Watched(Limits(seconds=0)) as watched:
        assert watched.judge(PNG).detail == "costs too much"
    with Watched(Limits(mib=5)) as watched:
        assert watched.judge(large).detail == "costs too much"
        os.kill(watched.pid or 0, signal.SIGKILL)
        assert [watched.judge(PNG).kind for _ in "12"] == [WRONG, PICTURE]
