"""What the tests of the guided methods share: pictures, batches of rows, and a distance."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from pnp_batch import methods
from pnp_batch import parameters as settled
from pnp_batch.diffusion.sampling import Guidance, Prompts, noise
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.methods.base import Asked, Batch
from pnp_batch.steps import Sampling
from pnp_batch.world import draw, random_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pnp_batch.models import StableDiffusion

CAT = Asked("a flat drawing of a red cat", source_prompt="a flat drawing of a blue cat", seed=1)
BOAT = Asked("an oil painting of a boat", source_prompt="a flat drawing of a boat", seed=2)


def picture(seed: int, side: int = 32) -> Image.Image:
    return draw(random_spec(Random(seed)), resolution=64).image.resize((side, side))


def pixels(seed: int, side: int = 32) -> torch.Tensor:
    """A picture as (1, 3, side, side) in -1..1."""
    flat = torch.tensor(list(picture(seed, side).convert("RGB").tobytes()), dtype=torch.float32)
    return flat.view(1, side, side, 3).permute(0, 3, 1, 2) / 127.5 - 1


def batch(
    model: StableDiffusion,
    method: str,
    rows: Sequence[Asked],
    images: Sequence[int] = (0,),
    owner: Sequence[int] | None = None,
    **given: Any,
) -> Batch:
    """Rows over the latents of drawn pictures, in `steps` (4) steps."""
    schedule = make_schedule(
        model.files.configs["scheduler"],
        Sampling(given.pop("steps", 4), given.pop("inversion_steps", None)),
    )
    x0 = torch.stack([model.encode(picture(seed)) for seed in images])
    own = list(owner or [0] * len(rows))
    leaders = [rows[own.index(n)] if n in own else rows[0] for n in range(len(images))]
    return Batch(
        UNet(model.unet),
        schedule,
        Guidance(
            torch.empty(0),
            torch.stack([model.text(row.source_prompt) for row in leaders]),
            torch.tensor(own),
            x0,
        ),
        Prompts(
            torch.stack([model.text(row.prompt) for row in rows]),
            torch.stack([model.text(row.negative_prompt) for row in rows]),
            torch.full((len(rows),), 7.5),
        ),
        torch.stack([noise(row.seed, tuple(x0.shape[1:])) for row in rows]),
        settled.resolved(methods.get(method), {"clip": "demo", **given}),
        tuple(rows),
        model,
    )


def picked(whole: Batch, cells: Sequence[int]) -> Batch:
    """Some rows of a batch, each with its image."""
    own = list(cells)
    images = whole.guidance.owner[own]
    return replace(
        whole,
        guidance=Guidance(
            torch.empty(0),
            whole.guidance.text[images],
            torch.arange(len(own)),
            whole.guidance.x0[images],
        ),
        prompts=Prompts(
            whole.prompts.target[own], whole.prompts.negative[own], whole.prompts.scale[own]
        ),
        noise=whole.noise[own],
        rows=tuple(whole.rows[n] for n in own),
    )


def alone(whole: Batch, n: int) -> Batch:
    """Row n of a batch with nothing beside it."""
    return picked(whole, [n])


def do_not_know_each_other(method: str, whole: Batch) -> None:
    """Rows are what they are alone, and bit by bit what they are in a batch that they fill up."""
    found, count = made(method, whole), len(whole.rows)
    for n in range(count):
        assert far(found[[n]], made(method, alone(whole, n))) < 1e-3
        assert found[n].equal(made(method, picked(whole, [n] * count))[n])
    # Each is another row: another picture, text, seed or parameter.
    assert len({tuple(one.flatten().tolist()) for one in found}) == count


def made(method: str, of: Batch) -> torch.Tensor:
    """What the method makes of a batch."""
    found = methods.get(method).translate(of)
    assert found is not None
    assert found.dtype == torch.float32
    assert not found.requires_grad
    return found.clone()


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in units of the largest value of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())
