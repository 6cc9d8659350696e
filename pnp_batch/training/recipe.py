"""The recipe: the settings of each stage, every number that made the shipped model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pnp_batch.training import clip, data, export, unet, vae
from pnp_batch.training.loop import Settings

CHUNKS = 24
SETTINGS = {
    "encoder": Settings(steps=1500, lr=4e-3, measure_every=500),
    "decoder": Settings(steps=6_000, lr=1e-3, hold=0.5),
    "clip": Settings(steps=3_000, lr=1e-3, measure_every=500),
    "unet": Settings(steps=40_000, lr=8e-4, hold=0.7, measure_every=500),
}
BATCH = {"encoder": 24, "decoder": 12, "clip": 96, "unet": 32}


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
    """Runs one stage: data, encoder, decoder, clip, unet or export."""
    if stage == "data":
        return data.draw_all(options.work / "data", CHUNKS)
    if stage == "export":
        return export.export(options.work, options.out or options.work / "model")
    settings = replace(SETTINGS[stage], minutes=options.minutes)
    if options.steps is not None:
        settings = replace(settings, steps=options.steps)
    train = {
        "encoder": vae.train_encoder,
        "decoder": vae.train_decoder,
        "clip": clip.train,
        "unet": unet.train,
    }[stage]
    return train(options.work, settings, options.batch or BATCH[stage], options.device)
