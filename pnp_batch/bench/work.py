"""The bench's work: drawn pictures with prompts, as they are or as a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from PIL import Image

from pnp_batch.world import Spec, draw, random_spec, samples


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Pictures that are others for each seed."""
    return [draw(spec).image for spec in _specs(count, seed)]


def texts(count: int) -> list[str]:
    """The prompts of each picture."""
    return [f"an oil painting, number {number}" for number in range(count)]


def manifest(path: Path, images: int, prompts: int) -> None:
    """Writes a manifest of pictures with as many prompts each."""
    specs = enumerate(_specs(images, seed=0))
    rows = (samples.row(f"{number:06d}", spec, texts(prompts)) for number, spec in specs)
    samples.write(rows, path)


def _specs(count: int, seed: int) -> Iterator[Spec]:
    dice = Random(f"bench/{seed}")
    return (random_spec(dice) for _ in range(count))
