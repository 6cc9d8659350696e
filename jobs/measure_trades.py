"""Measures what the trades of picture for time cost and gain, on held-out drawings.

For each of them: counted FLOPs and CPU seconds of an image; against the exact result of 50 steps
pixels (PSNR), structure (edges, mask of the object) and text (object colour, scene, rendition).
Prints a Markdown table, and draws the plot of docs/performance.md. On the front are those that
nothing else here beats in both FLOPs and PSNR.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from pnp_batch import Translator
from pnp_batch.config import RunConfig
from pnp_batch.plan import plan
from pnp_batch.report.plot import Axis, Point, scatter
from pnp_batch.world import benchmark, compare, samples
from pnp_batch.world.compare import ALL_TEXT, Estimate, Scores

EXACT = "exact"
TRADES: dict[str, dict[str, Any]] = {
    EXACT: {},
    **{f"{n} steps": {"steps": n} for n in (25, 20, 15, 10)},
    **{f"deep every {n}": {"deep_every": n} for n in (2, 3, 5)},
    **{f"{n} steps, deep every 2": {"steps": n, "deep_every": 2} for n in (25, 20, 15, 10)},
}
MEASURES = (ALL_TEXT, *benchmark.STRUCTURE)
Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Trade:
    """What one of them costs and gains.

    Attributes:
        gflop, seconds: of an image, its inversion included; seconds of one CPU core.
        psnr: against the exact pictures, dB; None for these themselves.
        scores: means over the pairs.
        change: against the exact pictures, pair by pair.
        front: whether nothing else here takes fewer FLOPs and has a higher PSNR.
    """

    settings: Mapping[str, Any]
    gflop: float
    seconds: float
    psnr: Estimate | None
    scores: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    front: bool = False


@click.command()
@click.option("--pairs", type=click.IntRange(4), default=64, show_default=True, help="How many.")
@click.option("--only", multiple=True, help="Name of a trade (repeatable; default: all).")
@click.option("--plot", metavar="FILE.svg", help="Draw PSNR over FLOPs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(pairs: int, only: tuple[str, ...], plot: str | None, as_json: bool) -> None:
    """Measure the trades on held-out pairs, on one CPU core."""
    torch.set_num_threads(1)
    ways = {name: TRADES[name] for name in (EXACT, *only)} if only else TRADES
    found = _fronted(_measured(ways, pairs))
    if plot:
        Path(plot).write_text(_plotted(found))
    body = {name: asdict(trade) for name, trade in found.items()}
    click.echo(json.dumps(body) if as_json else "\n".join(_markdown(found, pairs)))


def _measured(ways: Mapping[str, Mapping[str, Any]], pairs: int) -> dict[str, Trade]:
    translator, cases = Translator.load(), benchmark.cases(pairs)
    sources = [benchmark.drawn(case.source).image for case in cases]
    prompts = [case.prompt for case in cases]
    translator.translate(sources[:1], prompts[:1], steps=1)  # the first one is slower
    found: dict[str, Trade] = {}
    exact: tuple[list[Image.Image], Scores] = [], []  # of the first way
    for name, settings in ways.items():
        begun = time.process_time()
        answers = translator.translate(sources, prompts, **settings)
        made = [image for image in answers if isinstance(image, Image.Image)]
        seconds = (time.process_time() - begun) / pairs
        pictures = zip(cases, made, strict=True)
        scores = [benchmark.score(case, np.asarray(image)) for case, image in pictures]
        if name == EXACT:
            exact = made, scores
        found[name] = Trade(
            settings,
            _gflop(cases, settings),
            seconds,
            None if name == EXACT else _psnr(made, exact[0]),
            {m: compare.mean(scores, m) for m in MEASURES},
            {m: compare.difference(scores, exact[1], m) for m in MEASURES},
        )
        click.echo(f"{name}: {seconds:.2f} s an image", err=True)
    return found


def _gflop(cases: Sequence[benchmark.Case], settings: Mapping[str, Any]) -> float:
    """Counted, of an image."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "manifest.parquet"
        samples.write(samples.rows_of(cases), path)
        job = RunConfig(str(path), f"{name}/output", device="cpu", **settings)
        return 1e3 * plan(job).tflop / len(cases)


def _psnr(made: Pictures, exact: Pictures) -> Estimate:
    """Of the pictures against the exact ones, dB."""
    found = []
    for one, other in zip(made, exact, strict=True):
        square = (np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2
        found.append({"psnr": float(10 * np.log10(255**2 / max(1e-2, square.mean())))})
    return compare.mean(found, "psnr")


def _fronted(found: Mapping[str, Trade]) -> dict[str, Trade]:
    """Marks those that nothing else beats in both FLOPs and PSNR."""

    def reached(trade: Trade) -> float:
        return float("inf") if trade.psnr is None else trade.psnr.mean

    def beaten(trade: Trade) -> bool:
        return any(
            other.gflop <= trade.gflop
            and reached(other) >= reached(trade)
            and (other.gflop, reached(other)) != (trade.gflop, reached(trade))
            for other in found.values()
        )

    return {name: replace(trade, front=not beaten(trade)) for name, trade in found.items()}


def _plotted(found: Mapping[str, Trade]) -> str:
    points = [
        Point(name, trade.gflop, trade.psnr.mean, trade.psnr.low, trade.psnr.high, trade.front)
        for name, trade in found.items()
        if trade.psnr is not None
    ]
    bounds = [bound for p in points for bound in (p.low or p.y, p.high or p.y)]
    x = Axis.around("GFLOP of an image", [p.x for p in points], by_ratio=True)
    return scatter(points, x, Axis.around("PSNR against the exact result, dB", bounds))


def _markdown(found: Mapping[str, Trade], pairs: int) -> Iterator[str]:
    exact = found[EXACT]
    yield f"{pairs} held-out pairs; in brackets 95 % bootstrap intervals; * on the front.\n"
    changes = " | ".join(f"{m.replace('_', ' ').replace('iou', 'IoU')} change" for m in MEASURES)
    yield f"| | GFLOP | less by | s | less by | PSNR, dB | {changes} |"
    yield "|---|" + "---:|" * (5 + len(MEASURES))
    for name, trade in found.items():
        cells = [f"{trade.gflop:.1f}", f"{exact.gflop / trade.gflop:.2f}"]
        cells += [f"{trade.seconds:.2f}", f"{exact.seconds / trade.seconds:.2f}"]
        cells.append("" if trade.psnr is None else _cell(trade.psnr, ".1f"))
        cells += ["" if trade is exact else _cell(trade.change[m], "+.3f") for m in MEASURES]
        yield f"| {name}{' *' * trade.front} | " + " | ".join(cells) + " |"
    told = ", ".join(f"{m.replace('_', ' ')} {_cell(exact.scores[m], '.2f')}" for m in MEASURES)
    yield f"\nThe exact result itself: {told}."


def _cell(found: Estimate, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


if __name__ == "__main__":
    main()
