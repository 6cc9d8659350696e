"""`plan`: what a job will cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pnp_batch.cli.options import answer, common, configured, job
from pnp_batch.clock import duration

# An empty place: a plan without an output has nothing done and nothing cached.
NOWHERE = "memory://nowhere"


@click.command()
@job
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Achieved TFLOP/s of all workers together.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Price of all workers together for an hour.",
)
@click.option(
    "--price-per-worker-hour",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Price of one worker, such as of its GPU, for an hour.",
)
@click.option(
    "--like",
    metavar="URI",
    help="Count with the rate of the run at URI (default: of this output's, or of the latest one "
    "that this machine has made of the model on such a device).",
)
@common
def plan(
    tflops: float | None,
    price_per_hour: float | None,
    price_per_worker_hour: float | None,
    like: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Count what translating MANIFEST will take: evaluations, FLOPs, hours, bytes, money."""
    from pnp_batch.plan import Prices
    from pnp_batch.plan import plan as count

    prices = Prices(price_per_hour, price_per_worker_hour)
    job_config = configured(given, {"output": NOWHERE})
    found = count(job_config, tflops=tflops, prices=prices, like=like)
    spent = found.unet_evaluations
    saved = found.published_tflop / found.tflop if found.tflop else 0.0
    lines = [
        f"rows: {found.rows} asked for, {found.done} done, {found.failed} failed before, "
        f"{found.todo} to do",
        f"guidance images: {found.images}",
        f"inversions: {found.inversions_missing} missing, {found.inversions_cached} cached",
        f"UNet evaluations: {sum(spent.values())} ("
        + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in spent.items())
        + ")",
        f"work: {found.tflop:.4g} TFLOP",
        f"  the published defaults: {found.published_tflop:.4g} TFLOP, {saved:.1f} times as much",
        f"time: {duration(found.hours * 3600)} with {found.workers} workers at {found.tflops:.3g} "
        "TFLOP/s together"
        + {
            "given": "",
            "measured": f", as measured ({found.tflops_of})",
            "kept": f", as this machine has measured ({found.tflops_of})",
            "assumed": f", assumed for {found.device}; --tflops sets it, any run measures it",
        }[found.tflops_from],
        f"{'GPU' if found.device == 'cuda' else 'worker'} hours: {found.worker_hours:.4g}",
        f"to write: {found.image_bytes / 1e6:.1f} MB of images, "
        f"{found.latent_bytes / 1e6:.1f} MB of latents",
    ]
    if found.price is not None:
        lines.append(f"price: {found.price:.2f}")
    answer("\n".join(lines), asdict(found), as_json=as_json)
