"""Measures what scores of the embedded benchmark say of perfect translations, and of wrong ones.

`pnp-batch compare` scores what methods make of the pairs of `pnp-batch manifest world`. Those are
drawn, so the true target of each can be drawn as well, and scored as if it had been made: no method
needs to do better. A target of another pair tells what a score is where nothing was kept. Prints a
Markdown table, with the interval that holds 95 % of bootstrap resamples over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from PIL import Image

from pnp_batch.evaluation.judge import Judge, Named, measures
from pnp_batch.evaluation.pair import NotScored, Pair
from pnp_batch.models import DEMO
from pnp_batch.scores import BY_NAME
from pnp_batch.world import benchmark, caption, compare
from pnp_batch.world.benchmark import Case

FAMILIES = ("clip", "structure", "pixels")
SHOWN = ("structure_distance", "edge_correlation", "clip_similarity", "clip_direction")


@click.command()
@click.option("--pairs", type=click.IntRange(2), default=16, show_default=True, help="How many.")
def main(pairs: int) -> None:
    """Score true targets, those of other pairs, and the guidance images themselves."""
    cases = benchmark.cases(pairs)
    true = [drawing.image for drawing in benchmark.true_targets(cases)]
    judge = Judge(measures(FAMILIES, DEMO, Named()))
    click.echo(f"| | {' | '.join(BY_NAME[name].title for name in SHOWN)} |")
    click.echo("|---|" + "---:|" * len(SHOWN))
    for name, outputs in (
        ("the true target", true),
        ("the true target of another pair", true[1:] + true[:1]),
        ("the guidance image", [benchmark.drawn(case.source).image for case in cases]),
    ):
        click.echo(f"| {name} | {' | '.join(_cells(judge, cases, outputs))} |")


def _cells(judge: Judge, cases: Sequence[Case], outputs: Sequence[Image.Image]) -> Iterator[str]:
    pairs = [
        Pair(output, benchmark.drawn(case.source).image, case.prompt, caption(case.source))
        for case, output in zip(cases, outputs, strict=True)
    ]
    told = [
        {name: value for name, value in one.items() if not isinstance(value, NotScored)}
        for one in judge.score(pairs)
    ]
    for name in SHOWN:
        if any(name in one for one in told):
            found = compare.mean(told, name)
            yield f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"
        else:
            yield "–"


if __name__ == "__main__":
    main()
