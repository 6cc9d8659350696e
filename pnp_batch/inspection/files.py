"""An inspection of image files: their URIs in, one picture file and its numbers out."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from pnp_batch import source
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig, JobError, RowError
from pnp_batch.inspection.inspection import Inspection, Map, Wanted, inspect
from pnp_batch.inspection.sheet import draw_sheet
from pnp_batch.job import policy
from pnp_batch.models import StableDiffusion, find
from pnp_batch.source import SourcePolicy
from pnp_batch.source.policy import shown as shown_uri
from pnp_batch.storage import Storage, absolute


class InvalidImage(JobError):
    """An image that was named on the command line cannot be used."""

    exit_code = InvalidConfig.exit_code


def inspect_files(
    images: Sequence[str],
    wanted: Wanted,
    config: RunConfig,
    begin: Callable[[str], None] = lambda image: None,
) -> dict[str, Any]:
    """Inspects images, writes the picture to `config.output`, and tells what it shows in numbers.

    Args:
        images: paths, or URIs as a manifest may hold them.
        wanted: what to look at.
        config: model, device, dtype, output, and the limits on images; the rest does not count.
        begin: called with each image's name before it is inverted.

    Raises:
        JobError: an image, the output or the model cannot be used.
    """
    _check_output(config.output, images)
    # Who names a file on the command line may read it, wherever it lies.
    allowed = replace(policy(config, "."), roots=("/",))
    opened = [_opened(image, allowed) for image in images]
    device, dtype = _device(config)
    model = StableDiffusion(find(config.model, config.revision), device, dtype)
    shown = [shown_uri(image) for image in images]
    names = [posixpath.basename(image) for image in shown]
    found = inspect(model, opened, wanted, lambda number: begin(names[number]))
    folder, name = posixpath.split(absolute(config.output))
    Storage(folder).write(name, source.encode(draw_sheet(found, names), "png"))
    return {
        "picture": absolute(config.output),
        "model": config.model,
        "device": device,
        "dtype": dtype,
        "resolution": found.pictures[0].width,
        "steps": wanted.sampling.steps,
        "prompt": wanted.prompt,
        "images": shown,
        **_numbers(found),
    }


def _check_output(output: str, images: Sequence[str]) -> None:
    if not output.lower().endswith(".png"):
        raise InvalidConfig(f"--output {output!r} is no PNG file", "give a name that ends in .png")
    if os.path.realpath(absolute(output)) in (os.path.realpath(absolute(i)) for i in images):
        raise InvalidConfig(
            f"--output {output!r} is one of the images, and would replace it",
            "name another file with --output, or leave it out of the images",
        )


def _opened(image: str, allowed: SourcePolicy) -> Image.Image:
    try:
        return source.open_image(image, None, allowed)
    except RowError as error:
        what, _, hint = str(error).partition("; ")
        raise InvalidImage(what, hint or "name another image") from error


def _device(config: RunConfig) -> tuple[str, str]:
    """The device and dtype, with what was left open settled by what this machine has."""
    device, dtype, gpu = config.device, config.dtype, torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise InvalidConfig("--device cuda, but torch finds no GPU here", "use --device cpu")
    if device == "auto":
        device = "cuda" if gpu else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto" and device == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if half else "float16"
    return device, "float32" if dtype == "auto" else dtype


def _numbers(found: Inspection) -> dict[str, Any]:
    return {
        "timesteps": list(found.timesteps),
        "features": [_map(m) for m in found.features],
        "self_attention": [
            {"image": m.image, **_map(m)} for own in found.self_attention for m in own
        ],
        "cross_attention": {
            "layers": list(found.word_layers),
            "words": [
                {
                    "image": image,
                    "word": word.word,
                    "tokens": word.tokens,
                    "share": word.share,
                    "peak": {"x": word.peak[0], "y": word.peak[1]},
                }
                for image, own in enumerate(found.words)
                for word in own
            ],
        },
    }


def _map(m: Map) -> dict[str, Any]:
    _, height, width, _ = m.colours.shape
    return {
        "layer": m.layer,
        "timestep": m.timestep,
        "channels": m.channels,
        "height": height,
        "width": width,
        "explained_variance": list(m.explained),
    }
