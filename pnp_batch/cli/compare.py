"""`compare`: several methods over one manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pnp_batch.cli.last_words import last_words
from pnp_batch.cli.options import answer, common, configured, job, job_file
from pnp_batch.given import METHODS
from pnp_batch.process import reachable

if TYPE_CHECKING:
    from pnp_batch.compare import Comparison

SCORES = 3  # more make lines too long; the files have all


@click.command()
@click.option(
    "--methods",
    metavar="A,B:NAME=VALUE,...",
    default="",
    help="Methods or presets, each with values of its own behind colons, such as"
    " pnp,sdedit-low,pnp:pnp_f_t=0.5.  [default: those of --config, or the usual ones]",
)
@job
@common
def compare(methods: str, as_json: bool, **given: Any) -> int:
    """Translate MANIFEST with several methods, score them, and show them beside each other.

    Each has an output of its own below --output, which `status`, `retry` and `report` know; all
    share one latent cache. Run again, it does only what is missing.
    """
    from pnp_batch.variants import listed, variants

    file = job_file(given.pop("config_file"), also=[METHODS])
    told = listed(file.pop(METHODS, None) or "")
    config = configured(given, file)
    reachable(config.address)
    from pnp_batch import compare as library
    from pnp_batch import progress

    chosen = variants(methods or told, config)
    died = "the process was killed, or Ray's own processes were; what is recorded stays"
    with last_words(died, "run the same command again to go on"), progress.shown() as listener:
        found = library.compare(config, chosen, listener)
    answer("\n".join(_told(found)), library.as_dict(config, found), as_json=as_json)
    bad = [one for one in found.ended if one.error]
    if bad:
        told = "; ".join(f"{one.name}: {one.error}" for one in bad)
        click.echo(f"error: {len(bad)} of {len(found.ended)} failed: {told}", err=True)
        click.echo(f"hint: {bad[0].hint or 'run the same command again'}", err=True)
    return found.exit_code


def _told(found: Comparison) -> Iterator[str]:
    from pnp_batch.report.comparison import table

    yield from _aligned(table(found.measured, SCORES))
    for one in found.measured:
        if one.failed:
            yield f"{one.name}: {one.failed} of {one.rows} rows failed"
    yield from (f"look at {file}" for file in found.files.values())


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of cells below each other, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
