"""Decodes spoilt and foreign image files by the thousand and prints what became of them.

    python -m tests.faults.images --mutations 100000 --pillow

Every file must end as a square RGB picture or as the right kind of row error, in bounded time and
memory; the exit code is 1 if one did not. `--pillow` adds the test images of Pillow's own source
distribution, which pip downloads. A wrong file is kept in the folder `--keep`.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click
import PIL

from tests.faults.bombs import bombs
from tests.faults.goods import good_files
from tests.faults.mutations import mutated
from tests.faults.watched import (
    PICTURE,
    SMALL,
    TOO_LARGE,
    UNDECODABLE,
    WRONG,
    Limits,
    Outcome,
    Watched,
)

HEAD = (
    "format",
    "files",
    "pictures",
    "undecodable",
    "too large",
    "worst s",
    "worst MiB",
    "verdict",
)


@dataclass
class Tally:
    """What became of the files of one format."""

    kinds: list[str] = field(default_factory=list)
    seconds: float = 0.0
    mib: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Counts one file."""
        self.kinds.append(outcome.kind)
        self.seconds = max(self.seconds, outcome.seconds)
        self.mib = max(self.mib, outcome.mib)

    def line(self, name: str) -> str:
        """One line of the table."""
        counts = [self.kinds.count(kind) for kind in (PICTURE, UNDECODABLE, TOO_LARGE)]
        wrong = self.kinds.count(WRONG)
        verdict = f"{wrong} wrong" if wrong else "ok"
        numbers = (len(self.kinds), *counts, f"{self.seconds:.2f}", f"{self.mib:.0f}")
        return _row(name, *numbers, verdict)


class Report:
    """Judges files, tallies them by group, and keeps those that end wrongly."""

    def __init__(self, keep: Path | None = None) -> None:
        self.tallies: dict[str, Tally] = {}
        self.wrong: list[str] = []
        self._keep = keep

    def judge(self, group: str, name: str, data: bytes, watched: Watched) -> Outcome:
        """Decodes one file under watch."""
        outcome = watched.judge(data)
        self.tallies.setdefault(group, Tally()).add(outcome)
        if outcome.kind == WRONG:
            self.wrong.append(
                f"{name}: {outcome.detail}, {outcome.seconds:.1f} s, {outcome.mib:.0f} MiB"
            )
            if self._keep:
                (self._keep / name.replace("/", "_").replace(" ", "-")).write_bytes(data)
        return outcome

    def text(self) -> str:
        """The table, and the files that ended wrongly."""
        lines = [_row(*HEAD), *(self.tallies[group].line(group) for group in self.tallies)]
        return "\n".join(lines + self.wrong)


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` spoilt files by name; the good ones come first."""
    goods = good_files()
    yield from goods.items()
    names, dice = sorted(goods), Random(seed)
    for number in range(count):
        name = names[number % len(names)]
        other = goods[dice.choice(names)]
        yield f"{name} {seed}-{number}", mutated(goods[name], other, Random(f"{seed} {number}"))


def fuzz(count: int, seed: int, report: Report) -> None:
    """Judges mutations."""
    with Watched(SMALL) as watched:
        for name, data in mutations(count, seed):
            report.judge(name.split()[0], name, data, watched)


def explode(report: Report) -> None:
    """Judges the bombs, each of which has one right end."""
    with Watched(Limits()) as watched:
        for name, (data, right) in bombs().items():
            outcome = report.judge("bombs", name, data, watched)
            if outcome.kind not in (right, WRONG):
                report.wrong.append(f"{name}: {outcome.kind}, not {right}")


def pillows(report: Report) -> None:
    """Judges the test images of Pillow, in its own group each kind of file name."""
    with tempfile.TemporaryDirectory() as folder, Watched(Limits()) as watched:
        for name, data in _pillow_files(Path(folder)):
            suffix = Path(name).suffix.lower() or "none"
            known = suffix in (".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
            report.judge(f"Pillow {suffix if known else 'others'}", name, data, watched)


def _pillow_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    wanted = ["--no-deps", "--no-binary", "pillow", f"pillow=={PIL.__version__}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *wanted]
    subprocess.run(command, check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive:
            if "/Tests/images/" in member.name and member.isfile():
                yield member.name.partition("/Tests/images/")[2], archive.extractfile(member).read()


def _row(*cells: object) -> str:
    first, *others = map(str, cells)
    return f"{first:14}" + "".join(f"{cell:>12}" for cell in others)


@click.command(help=__doc__)
@click.option("--mutations", "count", default=1000, show_default=True, help="spoilt files")
@click.option("--seed", default=0, show_default=True, help="of the mutations")
@click.option("--pillow", is_flag=True, help="also Pillow's own test images")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="for wrong files")
def main(count: int, seed: int, pillow: bool, keep: Path | None) -> None:
    """Runs the long form."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    report = Report(keep)
    explode(report)
    if pillow:
        pillows(report)
    fuzz(count, seed, report)
    click.echo(report.text())
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
