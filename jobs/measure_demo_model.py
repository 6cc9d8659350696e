"""Measures a model on held-out drawings of the picture world, without any other network.

Prints, as Markdown for the model card or as JSON, what each way to translate reaches in structure
and in text, beside the true targets as the model's own VAE shows them, which is the most that any
translation through it can reach; and how good its VAE is and how much its layers matter.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from pnp_batch import Translator
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.report.sheet import Drawn, draw_sheet
from pnp_batch.steps import Sampling
from pnp_batch.training import data
from pnp_batch.training.influence import influence
from pnp_batch.world import benchmark, compare, draw
from pnp_batch.world.compare import ALL_TEXT, Estimate, Scores, Trade

SOURCE, PNP, ALONE, TARGET = "source", "pnp", "inversion alone", "true target through the VAE"
# In the order of their strengths: SDEdit at 0 is the source through the VAE.
SDEDIT = {f"sdedit {s:g}": {"method": "sdedit", "strength": s} for s in (0.0, 0.5, 0.7, 0.85)}
WAYS: dict[str, dict[str, Any]] = {
    PNP: {},
    "pnp, features only": {"pnp_attn_t": 0.0},
    "pnp, attention only": {"pnp_f_t": 0.0},
    ALONE: {"pnp_f_t": 0.0, "pnp_attn_t": 0.0},
    **SDEDIT,
}
MEASURES = (*benchmark.TEXT, ALL_TEXT, *benchmark.STRUCTURE)
TIMES = (701, 901)
SHOWN = 16
FEW = click.IntRange(min=len(benchmark.KINDS))
Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Report:
    """All that is measured, as `--json` prints it."""

    pairs: int
    steps: int
    guidance_scale: float
    scores: dict[str, dict[str, Estimate]]
    share_of_target: dict[str, dict[str, float]]
    pnp_over_inversion: dict[str, Estimate]
    pnp_over_sdedit: list[Trade]
    influence: dict[str, dict[str, float]]
    drawings: int
    vae_psnr: float


@click.command()
@click.option("--model", default="demo", show_default=True, help="`demo` or a model directory.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option("--pairs", type=FEW, default=64, show_default=True, help="How many, of all kinds.")
@click.option("--drawings", type=FEW, default=64, show_default=True, help="For VAE and layers.")
@click.option("--steps", default=50, show_default=True, help="Sampling and inversion steps.")
@click.option("--guidance-scale", default=7.5, show_default=True, help="As in `pnp-batch run`.")
@click.option("--sheet", metavar="FILE.png", help=f"Draw the first {SHOWN} pairs into a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(model: str, device: str, sheet: str | None, as_json: bool, **numbers: Any) -> None:
    """Measure a model on held-out pairs: object colour, scene, rendition, edges, mask."""
    cases = benchmark.cases(numbers["pairs"])
    with tempfile.TemporaryDirectory() as latents:  # all ways share the inversions
        translator = Translator.load(model, device, cache=latents)
        settings = {name: numbers[name] for name in ("steps", "guidance_scale")}
        sources = [benchmark.drawn(case.source).image for case in cases]
        prompts = [case.prompt for case in cases]
        pictures: dict[str, Pictures] = {SOURCE: sources}
        pictures |= _translated(translator, sources, prompts, settings)
    targets = [drawing.image for drawing in benchmark.true_targets(cases)]
    pictures[TARGET] = [_through_vae(translator, target) for target in targets]
    if sheet:
        shown = zip(cases, sources, pictures[PNP], targets, strict=True)
        groups = [Drawn(s, ((c.prompt, made), ("true target", t))) for c, s, made, t in shown]
        draw_sheet(groups[:SHOWN]).save(sheet)
    scores = {way: _scored(cases, shown) for way, shown in pictures.items()}
    report = _report(scores, numbers, _model_alone(translator, numbers["drawings"]))
    click.echo(json.dumps(asdict(report)) if as_json else "\n".join(_markdown(report)))


def _translated(
    translator: Translator, sources: Pictures, prompts: list[str], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Pictures]]:
    for way, changes in WAYS.items():
        begun = time.monotonic()
        made = translator.translate(sources, prompts, **settings, **changes)
        click.echo(f"{way}: {len(made)} pictures, {time.monotonic() - begun:.0f} s", err=True)
        yield way, [image for image in made if isinstance(image, Image.Image)]


def _through_vae(translator: Translator, image: Image.Image) -> Image.Image:
    return translator.model.decode(translator.model.encode(image))


def _scored(cases: Sequence[benchmark.Case], shown: Pictures) -> list[dict[str, float]]:
    pairs = zip(cases, shown, strict=True)
    return [benchmark.score(case, np.asarray(image)) for case, image in pairs]


def _model_alone(translator: Translator, count: int) -> dict[str, Any]:
    """The VAE's PSNR in dB and the layers' influence by time, on pictures never trained on."""
    model = translator.model
    images = [draw(spec).image for spec in data.specs(data.HELD_OUT, count)]
    psnr = [_psnr(image, _through_vae(translator, image)) for image in images]
    latents = torch.stack([model.encode(image) for image in images])
    pair = (latents[: count // 2], latents[count // 2 : count // 2 * 2])
    levels = make_schedule(model.files.configs["scheduler"], Sampling(1)).alpha_bar
    found = {t: influence(model.unet, pair, model.text("")[None], t, levels[t]) for t in TIMES}
    by_layer = {name: {str(t): found[t][name] for t in TIMES} for name in found[TIMES[0]]}
    return {"drawings": count, "vae_psnr": float(np.mean(psnr)), "influence": by_layer}


def _psnr(a: Image.Image, b: Image.Image) -> float:
    square = (np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2
    return float(10 * np.log10(255**2 / max(1e-6, square.mean())))


def _report(
    scores: Mapping[str, Scores], numbers: Mapping[str, Any], alone: Mapping[str, Any]
) -> Report:
    means = {
        way: {name: compare.mean(own, name) for name in MEASURES} for way, own in scores.items()
    }
    best = {name: means[TARGET][name].mean for name in (*benchmark.TEXT, ALL_TEXT)}
    curve = [scores[way] for way in SDEDIT]
    held = [(ALL_TEXT, name) for name in benchmark.STRUCTURE]
    held += [(name, ALL_TEXT) for name in benchmark.STRUCTURE]
    return Report(
        pairs=numbers["pairs"],
        steps=numbers["steps"],
        guidance_scale=numbers["guidance_scale"],
        scores=means,
        share_of_target={
            way: {name: means[way][name].mean / most for name, most in best.items()}
            for way in (SOURCE, *WAYS)
        },
        pnp_over_inversion={
            name: compare.difference(scores[PNP], scores[ALONE], name) for name in MEASURES
        },
        pnp_over_sdedit=[compare.trade(scores[PNP], curve, *names) for names in held],
        **alone,
    )


def _markdown(report: Report) -> Iterator[str]:
    """The report as tables; in brackets the intervals."""
    yield (
        f"{report.pairs} held-out pairs, {report.steps} steps, guidance scale "
        f"{report.guidance_scale:g}; in brackets 95 % bootstrap intervals over the pairs.\n"
    )
    scored = {way: map(_cell, own.values()) for way, own in report.scores.items()}
    yield from _table(("way", *map(_name, MEASURES)), scored)
    yield f"\nText as a share of the {TARGET}:\n"
    shares = {way: map(_percent, own.values()) for way, own in report.share_of_target.items()}
    yield from _table(("way", *map(_name, (*benchmark.TEXT, ALL_TEXT))), shares)
    yield "\nWhat injection adds to inversion alone, pair by pair:\n"
    added = map(_signed, report.pnp_over_inversion.values())
    yield from _table(("", *map(_name, MEASURES)), {f"{PNP} - {ALONE}": added})
    yield from _traded(report.pnp_over_sdedit)
    yield (
        f"\nOn {report.drawings} held-out drawings the VAE reconstructs with "
        f"{report.vae_psnr:.1f} dB PSNR.\nChange of the predicted picture when a layer gets another"
        " picture's output, over the two pictures' distance:\n"
    )
    swapped = {name: [f"{v:.3f}" for v in own.values()] for name, own in report.influence.items()}
    yield from _table(("layer", *(f"t = {time}" for time in TIMES)), swapped)


def _traded(trades: Sequence[Trade]) -> Iterator[str]:
    yield "\nPnP and SDEdit where both have as much of one (SDEdit linear between its strengths):\n"
    rows = {
        f"{_name(t.measured)} at equal {_name(t.held)} ({t.level:.2f}{'' if t.inside else '*'})": (
            f"{t.ours:.2f}",
            f"{t.theirs:.2f}",
            _signed(t.gain),
        )
        for t in trades
    }
    yield from _table(("", PNP, "sdedit", "difference"), rows)
    if not all(trade.inside for trade in trades):
        yield "\n\\* beyond what SDEdit reaches: its nearest strength stands."


def _table(head: Sequence[str], rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for name, cells in rows.items():
        yield "| " + " | ".join((name, *cells)) + " |"


def _name(measure: str) -> str:
    return measure.replace("_", " ").replace("iou", "IoU")


def _cell(found: Estimate) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _signed(found: Estimate) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
