"""Attempts: work that kills its worker is tried alone, then given up; its neighbours are not."""

from __future__ import annotations

from pnp_batch.attempts import ATTEMPTS, Attempts, Verdict


def test_the_one_that_kills_is_given_up_after_three_attempts_and_no_other():
    attempts = Attempts()
    attempts.begin(["a", "killer", "b"])
    assert attempts.verdict(["a", "killer", "b", "c"]) == Verdict(
        together=("c",), alone=("a", "killer", "b")
    )
    for name in ("a", "b"):
        attempts.begin([name])
        attempts.end([name])
    attempts.begin(["killer"])
    assert attempts.verdict(["a", "killer", "b"]) == Verdict(together=("a", "b"), last=("killer",))
    attempts.begin(["killer"])
    assert ATTEMPTS == 3
    assert attempts.verdict(["a", "killer"]) == Verdict(together=("a",), killed=("killer",))


def test_what_has_ended_begins_from_nothing():
    attempts = Attempts()
    for _ in range(2 * ATTEMPTS):
        attempts.begin(["a"])
        attempts.end(["a"])
    assert attempts.verdict(["a"]) == Verdict(together=("a",))


def test_too_long_is_the_fault_of_who_was_alone():
    attempts = Attempts()
    attempts.begin(["a", "slow"])
    attempts.expire(["a", "slow"])
    assert attempts.verdict(["a", "slow"]) == Verdict(alone=("a", "slow"))
    attempts.begin(["slow"])
    attempts.expire(["slow"])
    assert attempts.verdict(["a", "slow"]) == Verdict(alone=("a",), expired=("slow",))


def test_what_is_in_flight_is_told_the_oldest_first_without_what_was_given_up():
    attempts = Attempts()
    attempts.begin(["b", "a"])
    attempts.begin(["c"])
    for _ in range(ATTEMPTS):
        attempts.begin(["killer"])
    attempts.end(["b"])
    assert attempts.unended == ["a", "c"]
