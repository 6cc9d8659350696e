"""`dataset card`: an output becomes a data set that others load."""

from __future__ import annotations

from dataclasses import asdict

import click

from pnp_batch.cli.options import answer, common


@click.group()
def dataset() -> None:
    """Make a data set of an output."""


@dataset.command()
@click.argument("output", metavar="URI")
@click.option("--name", help="Of the data set.  [default: the last part of URI]")
@click.option("--license", "licence", metavar="ID", help="Under which you publish it.")
@common
def card(output: str, name: str | None, licence: str | None, as_json: bool) -> None:
    """Write README.md and metadata.parquet into URI, with which it loads as a Hugging Face dataset.

    Call it again when rows were added.
    """
    from pnp_batch.dataset.card import write_card

    made = write_card(output, name, licence)
    lines = [f"{made.rows} rows, {made.left_out} failed ones left out", f"look at {made.card}"]
    answer("\n".join(lines), asdict(made), as_json=as_json)
