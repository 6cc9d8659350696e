"""Measures a model on the held-out pairs of the picture world, without any other network.

Prints what each way to translate reaches in structure and in text, beside the true targets as the
model's own VAE shows them, which is the most that any translation through it can reach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
import numpy as np
from PIL import Image

from pnp_batch import Translator
from pnp_batch.world import benchmark, draw

MEASURES = (*benchmark.TEXT, *benchmark.STRUCTURE)
WAYS = {
    "pnp": {},
    "pnp, features only": {"pnp_attn_t": 0.0},
    "pnp, attention only": {"pnp_f_t": 0.0},
    "inversion alone": {"pnp_f_t": 0.0, "pnp_attn_t": 0.0},
}


@click.command()
@click.option("--model", default="demo", show_default=True, help="`demo` or a model directory.")
@click.option("--pairs", default=64, show_default=True, help="How many pairs, all kinds in turn.")
@click.option("--steps", default=50, show_default=True, help="Sampling and inversion steps.")
@click.option("--guidance-scale", default=7.5, show_default=True, help="As in `pnp-batch run`.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    model: str,
    pairs: int,
    steps: int,
    guidance_scale: float,
    ways: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a model on held-out pairs: object colour, scene, rendition, edges, mask."""
    cases = benchmark.cases(pairs)
    translator = Translator.load(model)
    sources = [draw(case.source).image for case in cases]
    prompts = [case.prompt for case in cases]
    ceiling = [_through_vae(translator, t.image) for t in benchmark.true_targets(cases)]
    pictures: dict[str, Sequence[Image.Image]] = {
        "source": sources,
        "true target through the VAE": ceiling,
    }
    for way in ways or WAYS:
        made = translator.translate(
            sources, prompts, steps=steps, guidance_scale=guidance_scale, **WAYS[way]
        )
        pictures[way] = [image for image in made if isinstance(image, Image.Image)]
    scores = {}
    for way, shown in pictures.items():
        scored = [
            benchmark.score(case, np.asarray(image))
            for case, image in zip(cases, shown, strict=True)
        ]
        scores[way] = benchmark.means(scored)
    if as_json:
        click.echo(json.dumps({"pairs": pairs, "steps": steps, "scores": scores}))
        return
    click.echo(f"| {pairs} pairs, {steps} steps | " + " | ".join(MEASURES) + " |")
    click.echo("|---" * (len(MEASURES) + 1) + "|")
    for way, found in scores.items():
        cells = [f"{found[name]:.2f}" if name in found else "" for name in MEASURES]
        click.echo(f"| {way} | " + " | ".join(cells) + " |")


def _through_vae(translator: Translator, image: Image.Image) -> Image.Image:
    return translator.model.decode(translator.model.encode(image))


if __name__ == "__main__":
    main()
