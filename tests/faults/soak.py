"""The long form of the fault suite: every experiment with all its faults, and every mutation.

    python -m tests.faults.soak [P3 P7 ...] [--folder DIR] [--no-mutants]

Out: a Markdown table on stdout and in `DIR/faults.md`, and what was found below it. The exit code
is 1 when a promise was broken, or when an experiment did not notice that a protection was gone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.noticed import CHECKS, Check, outcome
from tests.faults.promise import EXPERIMENTS, Experiment, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = "| promise | what is done | runs | faults | rows | seconds | verdict |"
LINES = "|---|---|---:|---:|---:|---:|---|"
logger = logging.getLogger("soak")


@dataclass(frozen=True)
class Line:
    """One line of the table and what is told below it."""

    text: str
    findings: tuple[str, ...]


def promised(experiment: Experiment, folder: Path, *, long: bool) -> Line:
    """Does one experiment; the line about it."""
    begun = time.monotonic()
    done = _done(experiment, folder, long=long)
    seconds = time.monotonic() - begun
    verdict = f"**{len(done.findings)} findings**" if done.findings else "kept"
    numbers = f"{done.runs:,} | {done.faults:,} | {done.rows:,} | {seconds:,.0f}"
    text = f"| {experiment.promise} {experiment.says} | {experiment.does} | {numbers} | {verdict} |"
    return Line(text, tuple(f"{experiment.promise}: {said}" for said in done.findings))


def checked(check: Check, folder: Path) -> Line:
    """Takes one protection out; the line about whether that was noticed."""
    begun = time.monotonic()
    done = outcome(check.check, folder, check.mutant)
    seconds = time.monotonic() - begun
    verdict = "the check noticed" if done.findings else "**not noticed**"
    what = f"`{check.mutant}` | {check.check.replace(':', ', ')}"
    text = f"| {what} | {done.runs:,} | {done.faults:,} | {done.rows:,} | {seconds:,.0f} |"
    missed = () if done.findings else (f"{check.check} did not notice {check.mutant}",)
    return Line(f"{text} {verdict} |", missed)


def _done(experiment: Experiment, folder: Path, *, long: bool) -> Outcome:
    """One broken experiment must not cost the others' hours."""
    try:
        return experiment.run(folder, long=long)
    except Exception as error:
        logger.exception("%s did not end", experiment.promise)
        return Outcome(0, 0, 0, (f"did not end: {type(error).__name__}: {error}",))


def soak(folder: Path, promises: set[str], *, mutants: bool, long: bool = True) -> int:
    """Does the chosen experiments and writes the table; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "faults.md"
    findings: list[str] = []
    report.write_text("")

    def tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        with report.open("a") as file:
            file.write(f"{text}\n")

    def note(found: Sequence[str]) -> None:
        for said in found:  # at once: the rest may take an hour
            logger.warning("%s", said)
        findings.extend(found)

    tell(f"{HEAD}\n{LINES}")
    for experiment in EXPERIMENTS:
        if experiment.promise in promises:
            line = promised(experiment, _emptied(folder, experiment.promise), long=long)
            tell(line.text)
            note(line.findings)
    for check in CHECKS if mutants else ():
        line = checked(check, _emptied(folder, check.mutant))
        tell(line.text)
        note(line.findings)
    for said in findings:
        tell(f"- {said}")
    return 1 if findings else 0


def _emptied(folder: Path, name: str) -> Path:
    """A new folder for one experiment."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))


def main() -> int:
    """Reads the options, does what they ask for."""
    known = [experiment.promise for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("promises", nargs="*", metavar="P", help="P1 ... P12; all if none is named")
    parser.add_argument("--folder", type=Path, help="where it works and writes faults.md")
    parser.add_argument("--no-mutants", action="store_true", help="leave the mutations out")
    parser.add_argument("--short", action="store_true", help="the short form of the experiments")
    given = parser.parse_args()
    if unknown := set(given.promises) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before an experiment imports torch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="pnp-soak-"))
    promises = set(given.promises or known)
    return soak(folder, promises, mutants=not given.no_mutants, long=not given.short)


if __name__ == "__main__":
    sys.exit(main())
