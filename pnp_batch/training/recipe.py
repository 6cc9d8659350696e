"""The recipe: which stage runs with which settings; every number that made the shipped model stands here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pnp_batch.training.loop import Settings

CHUNKS = 24
SETTINGS = {
    "vae": Settings(steps=40_000, lr=2e-3, hold=0.3),
    "clip": Settings(steps=6_000, lr=1e-3, measure_every=500),
    "unet": Settings(steps=40_000, lr=8e-4, hold=0.7, measure_every=500),
}
BATCH = {"vae": 12, "clip": 96, "unet": 32}


@dataclass(frozen=True)
class Options:
    """What the command line may change: places, budget, batch and device."""

    work: Path
    out: Path | None = None
    steps: int | None = None
    minutes: float = math.inf
    batch: int | None = None
    device: str = "cpu"


def run(stage: str, options: Options) -> None:
    """Runs one stage: data, vae, clip, unet or export."""
    if stage == "data":
        from pnp_batch.training.data import draw_all

        return draw_all(options.work / "data", CHUNKS)
    if stage == "export":
        from pnp_batch.training.export import export

        return export(options.work, options.out or options.work / "model")
    settings = replace(SETTINGS[stage], minutes=options.minutes)
    if options.steps is not None:
        settings = replace(settings, steps=options.steps)
    batch = options.batch or BATCH[stage]
    if stage == "vae":
        from pnp_batch.training import vae

        return vae.train(options.work, settings, batch, options.device)
    if stage == "clip":
        from pnp_batch.training import clip

        return clip.train(options.work, settings, batch, options.device)
    from pnp_batch.training import unet

    return unet.train(options.work, settings, batch, options.device)
