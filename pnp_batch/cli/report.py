"""`report`: the page that shows one output or compares several."""

from __future__ import annotations

import click

from pnp_batch.cli.options import answer, common


@click.command()
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
@click.option(
    "--output", metavar="URI", help="Write the page there instead of report/ in the first output."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Rows of each output that are shown with pictures.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0),
    metavar="X",
    help="Price of one device for an hour of computing.",
)
@common
def report(
    uris: tuple[str, ...],
    output: str | None,
    limit: int,
    price_per_hour: float | None,
    as_json: bool,
) -> None:
    """Write a page that shows the output at URI, or compares several.

    It tells what ran, what it cost, what failed and how the scores are, and shows every picture
    beside its guidance image. It opens from disk or object storage, without a server or network.
    """
    from pnp_batch.report.page import write_report

    page = write_report(*uris, place=output, limit=limit, price_per_hour=price_per_hour)
    answer(f"look at {page}", {"report": page}, as_json=as_json)
