"""Measures what masks do to Plug-and-Play, on held-out drawings whose exact masks are known.

For plain `pnp` and each mode of `pnp-mask`, all from one inversion with the source's caption:
structure inside the object (edges; the mask that can be read), the background as it was (PSNR and
edges outside the object against the source), text (object colour, scene, rendition), and how well
the mask that was read from cross-attention meets the object. Prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from pnp_batch import Translator
from pnp_batch.config import RunConfig
from pnp_batch.engine import Outcome
from pnp_batch.world import benchmark, caption, compare, measures
from pnp_batch.world.compare import ALL_TEXT, Estimate, Scores

PLAIN = "pnp"
MODES = ("foreground", "background", "both")
MEASURES = {
    "edges_inside": "edges inside",
    "mask_iou": "object's mask, IoU",
    "psnr_outside": "PSNR outside, dB",
    "edges_outside": "edges outside",
    ALL_TEXT: "text",
}
READ = "mask read, IoU"


@click.command()
@click.option("--pairs", type=click.IntRange(4), default=64, show_default=True, help="How many.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True)
@click.option("--threshold", type=float, default=0.1, show_default=True, help="--mask-threshold.")
def main(pairs: int, steps: int, threshold: float) -> None:
    """Measure the modes on held-out pairs, on one CPU core."""
    torch.set_num_threads(1)
    cases = benchmark.cases(pairs)
    ways = {PLAIN: {"method": "pnp"}} | {
        mode: {"method": "pnp-mask", "mask_mode": mode, "mask_threshold": threshold}
        for mode in MODES
    }
    with tempfile.TemporaryDirectory() as cache:
        translator = Translator.load(cache=cache)
        found = {name: _scores(translator, cases, {"steps": steps, **ways[name]}) for name in ways}
    click.echo(f"{pairs} held-out pairs, {steps} steps, threshold {threshold:g}; ", nl=False)
    click.echo("in brackets 95 % bootstrap intervals; below `pnp`, differences to it.\n")
    click.echo("\n".join(_markdown(found)))


def _scores(
    translator: Translator, cases: Sequence[benchmark.Case], settings: Mapping[str, Any]
) -> Scores:
    """Of one way, those of each case."""
    sources = [benchmark.drawn(case.source).image for case in cases]
    config = RunConfig(manifest="-", output="-", **settings)
    engine, rows = translator.prepared(sources, [case.prompt for case in cases], config)
    told = [
        replace(row, source_prompt=caption(case.source), own={"subject": case.source.object})
        for row, case in zip(rows, cases, strict=True)
    ]
    made = {outcome.row.row_id: outcome for outcome in engine.translate(told)}
    click.echo(f"{settings} done", err=True)
    return [_score(case, made[row.row_id]) for row, case in zip(rows, cases, strict=True)]


def _score(case: benchmark.Case, made: Outcome) -> dict[str, float]:
    if made.image is None:
        raise click.ClickException(f"{case.name}: {made.error}")
    drawing, picture = benchmark.drawn(case.source), np.asarray(made.image)
    source = np.asarray(drawing.image)
    found = benchmark.score(case, picture)
    apart = (source[~drawing.mask].astype(float) - picture[~drawing.mask]) ** 2
    found |= {
        "edges_inside": _edges(source, picture, drawing.mask),
        "edges_outside": _edges(source, picture, ~drawing.mask),
        "psnr_outside": float(10 * np.log10(255**2 / max(1e-2, apart.mean()))),
    }
    if made.extras:
        read = np.asarray(made.pictures()["source mask"]) > 127
        found[READ] = measures.mask_iou(read, drawing.mask)
    return found


def _edges(a: measures.Picture, b: measures.Picture, mask: NDArray[np.bool_]) -> float:
    """Pearson correlation of two pictures' edges in a mask."""
    first, second = (measures.edge_strength(picture)[mask] for picture in (a, b))
    if first.std() < 1e-6 or second.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _markdown(found: Mapping[str, Scores]) -> Iterator[str]:
    yield f"| | {' | '.join(MEASURES.values())} | {READ} |"
    yield "|---|" + "---:|" * (len(MEASURES) + 1)
    for name, scores in found.items():
        if name == PLAIN:
            cells = [_cell(compare.mean(scores, m), ".2f") for m in MEASURES]
            yield f"| {name} | {' | '.join(cells)} | |"
            continue
        cells = [_cell(compare.difference(scores, found[PLAIN], m), "+.3f") for m in MEASURES]
        cells.append(_cell(compare.mean(scores, READ), ".2f"))
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(found: Estimate, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


if __name__ == "__main__":
    main()
