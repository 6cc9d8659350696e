"""What a job makes when nothing can happen to it: in this process, without Ray, workers or stores.

In: a manifest of embedded pictures and a model. Out: a folder with the images and latents that any
run of the job must have, to the byte.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch
from PIL import Image

from pnp_batch import Translator
from pnp_batch.sink import image_name
from pnp_batch.source import encode
from tests.faults.places import Folder

if TYPE_CHECKING:
    from pathlib import Path

LATENTS = "latents"  # where a run without --cache has them, too


@dataclass(frozen=True)
class Settings:
    """Of the job, as far as its bytes depend on them; `workers` share the cores."""

    model: str
    batch_size: int
    steps: int = 2
    workers: int = 1

    @property
    def flags(self) -> tuple[str, ...]:
        """For `pnp-batch run`."""
        shaping = ("--model", self.model, "--steps", f"{self.steps}", "--device", "cpu")
        shaping += ("--no-provenance",)  # what is translated here has no row to tell of
        return (*shaping, "--batch-size", f"{self.batch_size}", "--workers", f"{self.workers}")


def translated(manifest: Path, settings: Settings, folder: Path) -> Folder:
    """Translates every row of a manifest; images and latents lie as in an output."""
    rows = pq.read_table(manifest).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    translator = Translator.load(settings.model, cache=str(folder / LATENTS))
    before = torch.get_num_threads()
    cores = (os.cpu_count() or 1) - 1  # an actor leaves one to others
    torch.set_num_threads(max(1, cores // settings.workers))
    try:
        made = translator.translate(
            pictures,
            [row["prompt"] for row in rows],
            steps=settings.steps,
            batch_size=settings.batch_size,
        )
    finally:
        torch.set_num_threads(before)
    place = Folder(folder)
    for row, images in zip(rows, made, strict=True):
        for number, image in enumerate(images):
            name = image_name(f"{row['row_id']}-{number}", "png")
            place.write(name, encode(image, "png"))
    return place
