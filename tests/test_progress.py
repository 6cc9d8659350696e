"""Progress for people: rates of a run, also of the next one that the same line tells of."""

from __future__ import annotations

from pnp_batch.pipeline import Progress
from pnp_batch.progress import Meter


def line(meter: Meter, done: int, seconds: float) -> str:
    return meter.line(Progress(10, done, 0, "translating", session_done=done, seconds=seconds))


def test_the_rate_counts_from_the_first_rows_of_each_run() -> None:
    meter = Meter()
    assert line(meter, 0, 5.0) == "translating: 0/10 rows"
    assert line(meter, 2, 20.0) == "translating: 2/10 rows"
    assert "0.50 rows/s, ETA 12s" in line(meter, 4, 24.0)
    assert line(meter, 10, 30.0) == "translating: 10/10 rows"
    # The next run begins.
    assert line(meter, 0, 1.0) == "translating: 0/10 rows"
    assert line(meter, 4, 3.0) == "translating: 4/10 rows"
    assert "1.00 rows/s" in line(meter, 6, 5.0)


def test_what_is_worth_telling_is_told() -> None:
    progress = Progress(10, 3, 1, "translating", cached=2, inverted=1, damaged=1, again=2)
    assert Meter().line(progress) == (
        "translating: 4/10 rows, 1 failed, inversions: 1 made, 2 cached, "
        "1 damaged latents replaced, 2 again after a worker died"
    )
