"""The engine: images inverted ahead of their batches, and what happens when memory runs out."""

from __future__ import annotations

from contextlib import contextmanager
from random import Random

import numpy as np
import pytest
import torch

from pnp_batch.batches import Place
from pnp_batch.engine import Engine
from pnp_batch.latents import LatentCache
from pnp_batch.methods import get
from pnp_batch.models import StableDiffusion, find
from pnp_batch.origins import Row
from pnp_batch.parameters import resolved
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage
from pnp_batch.world import draw, random_spec

STEPS = 3
IMAGES = 4


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return StableDiffusion(find(str(tiny_model_dir("sd1"))))


def rows(ahead, images=range(IMAGES)):
    """One row of each image, in batches of two, the images of `ahead` batches inverted together."""
    return [
        Row(
            row_id=f"row {k}",
            guidance=f"image {k}",
            pixels=draw(random_spec(Random(k)), resolution=64).image.resize((32, 32)),
            prompt=f"prompt {k}",
            method="pnp",
            place=Place(2, 1, k % (2 * ahead), 0, ahead),
            parameters=resolved(get("pnp"), {}),
        )
        for k in images
    ]


def engine(model, cache=None):
    kept = LatentCache(Storage(str(cache))) if cache else None
    return Engine(model, sampling=Sampling(STEPS), resolution=32, cache=kept)


def made(engine, some):
    return {outcome.row.row_id: outcome for outcome in engine.translate(some)}


@contextmanager
def watched(model, most=1000):
    """The rows of each evaluation of the UNet, which has memory for so many at most."""
    sizes = []

    def look(module, given, named):
        x = given[0] if given else named["sample"]
        if len(x) > most:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        sizes.append(len(x))

    hook = model.unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield sizes
    finally:
        hook.remove()


def far(some, others):
    """The largest difference of pictures, in levels of 255."""
    assert some.keys() == others.keys()
    levels = [
        np.abs(np.asarray(some[name].image, int) - np.asarray(others[name].image, int)).max()
        for name in some
    ]
    return max(levels)


@pytest.fixture(scope="module")
def one_by_one(model):
    """What becomes of the rows if each batch inverts its own images."""
    with watched(model) as sizes:
        found = made(engine(model), rows(ahead=1))
    assert sizes[:STEPS] == [2] * STEPS
    return found


def test_images_of_several_batches_are_inverted_together(model, one_by_one):
    with watched(model) as sizes:
        found = made(engine(model), rows(ahead=2))
    assert sizes[:STEPS] == [IMAGES] * STEPS  # all at once, and then none any more
    assert sizes.count(IMAGES) == STEPS + 2 * STEPS  # each batch of two has four branches a step
    assert far(found, one_by_one) <= 1
    assert not any(outcome.cached for outcome in found.values())


def test_what_is_cached_is_not_inverted_with_the_others(model, one_by_one, tmp_path):
    made(engine(model, tmp_path), rows(ahead=2, images=[3]))
    with watched(model) as sizes:
        found = made(engine(model, tmp_path), rows(ahead=2))
    assert far(found, one_by_one) <= 1
    assert {name for name, outcome in found.items() if outcome.cached} == {"row 3"}
    assert sizes[0] == IMAGES  # the shape stays, with an empty place
    with watched(model) as sizes:
        again = made(engine(model, tmp_path), rows(ahead=2))
    assert far(again, one_by_one) <= 1
    assert all(outcome.cached for outcome in again.values())


def test_an_image_that_is_alone_is_not_padded_to_many(model):
    with watched(model) as sizes:
        made(engine(model), rows(ahead=8, images=[0]))
    assert max(sizes) == 4


def test_where_the_memory_is_too_small_for_all_each_batch_inverts_its_own(model, one_by_one):
    with watched(model, most=4) as sizes:
        found = made(engine(model), rows(ahead=3, images=range(IMAGES)))
    assert max(sizes) == 4
    assert far(found, one_by_one) <= 1


def test_a_batch_that_does_not_fit_is_halved_until_a_row_is_an_error(model, one_by_one):
    with watched(model, most=2):
        found = made(engine(model), rows(ahead=1))
    assert far(found, one_by_one) <= 1
    with watched(model, most=1):
        (outcome,) = engine(model).translate(rows(ahead=1, images=[0]))
    assert outcome.image is None
    assert outcome.error is not None
    assert "too little memory for one row" in str(outcome.error)


def test_the_unet_s_seconds_are_a_part_of_the_rows(model):
    used = engine(model)
    found = made(used, rows(ahead=1))
    assert 0 < used.unet.watch.seconds() <= sum(outcome.seconds for outcome in found.values())
