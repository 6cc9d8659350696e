"""`evaluate`: scores of an output."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pnp_batch.cli.last_words import last_words
from pnp_batch.cli.options import answer, common
from pnp_batch.clock import duration
from pnp_batch.config import DEVICES
from pnp_batch.errors import EXIT_INTERRUPTED
from pnp_batch.process import reachable
from pnp_batch.scores import BY_NAME

if TYPE_CHECKING:
    from pnp_batch.evaluate import Evaluated, Settings
    from pnp_batch.summary import Line, Table
    from pnp_batch.world.compare import Estimate

ACROSS = 3  # groups beside each other; more make lines too long
LONGEST = 24


@click.command()
@click.argument("output", metavar="URI")
@click.option("--metrics", metavar="A,B", default="", help="Families of scores (default: all).")
@click.option("--clip", metavar="NAME_OR_DIR", help="CLIP in transformers format.")
@click.option("--vit", metavar="NAME_OR_DIR", help="ViT of the structure distance.")
@click.option("--lpips", metavar="FILE", help="SqueezeNet's weights, or `squeezenet1_1`.")
@click.option("--by", metavar="COLUMN", help="Tell rows apart by this column, too.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Actors that each hold the networks.")
@click.option("--address", metavar="ADDR", help="An existing Ray cluster.")
@click.option("--wait", is_flag=True, help="Wait while a run is writing there.")
@click.option("--again", is_flag=True, help="Score also what has been scored.")
@common
def evaluate(output: str, as_json: bool, **options: Any) -> int:
    """Score the output at URI; run again, it does only what is missing."""
    reachable(options["address"])
    from pnp_batch import evaluate as library
    from pnp_batch import pipeline
    from pnp_batch.evaluation import Named

    named = Named(*(options.pop(name) for name in ("clip", "vit", "lpips")))
    named_families = (name.strip() for name in options.pop("metrics").split(","))
    families = tuple(name for name in named_families if name)
    found = evaluated(output, library.Settings(families, named, **options))
    answer("\n".join(_told(found)), asdict(found), as_json=as_json)
    if found.exit_code == EXIT_INTERRUPTED:
        raise pipeline.Interrupted("interrupted, what was scored is recorded")
    return found.exit_code


def evaluated(output: str, settings: Settings) -> Evaluated:
    """Evaluates an output, with progress on standard error."""
    from pnp_batch import evaluate as library
    from pnp_batch import progress

    died = "the process was killed, or Ray's own processes were; what is scored stays"
    with last_words(died, "run the same command again to go on"), progress.shown() as listener:
        return library.evaluate(output, settings, listener)


def _told(found: Evaluated) -> Iterator[str]:
    yield (
        f"{found.scored} rows scored in {duration(found.seconds)}, "
        f"{found.rows - found.scored} had their scores: {found.output}"
    )
    yield from (f"{family}: {network}" for family, network in found.networks.items())
    for table in found.tables:
        for start in range(0, len(table.lines), ACROSS):
            yield ""
            yield from lines(table, table.lines[start : start + ACROSS])
    yield f"\nnext: pnp-batch report {shlex.quote(found.output)}"


def lines(table: Table, groups: Sequence[Line]) -> Iterator[str]:
    """Some groups of a table: scores downwards, groups across, with their 95 % intervals."""
    names = [name for name in BY_NAME if any(name in line.scores for line in groups)]
    rows = [[table.by, *(f"{line.group[:LONGEST]} ({line.rows} rows)" for line in groups)]]
    for name in names:
        rows.append([BY_NAME[name].title, *(_cell(line.scores.get(name)) for line in groups)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _cell(found: Estimate | None) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" if found else "n/a"
