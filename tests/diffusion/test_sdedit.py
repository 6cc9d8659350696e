"""SDEdit against the reference: its numerics, and its rows from pictures to pictures."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_batch.batches import Place
from pnp_batch.diffusion.sampling import SOURCE_GUIDANCE_SCALE, Guidance, Prompts
from pnp_batch.engine import Engine
from pnp_batch.methods import get
from pnp_batch.methods.base import Batch
from pnp_batch.methods.sdedit import SDEdit
from pnp_batch.models import StableDiffusion, find
from pnp_batch.origins import Row
from pnp_batch.parameters import resolved
from pnp_batch.steps import Sampling
from pnp_batch.world import draw, random_spec
from tests import reference, tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, both_schedules, far, latents, texts

STEPS = 4


@pytest.fixture(scope="module", params=tiny.LAYOUTS)
def engine(request, tiny_model_dir):
    """An engine of a few steps without a cache; sd1 predicts epsilon, sd2 predicts v."""
    model = StableDiffusion(find(str(tiny_model_dir(request.param))))
    return Engine(model, sampling=Sampling(STEPS), resolution=32)


def picture(seed: int) -> Image.Image:
    return draw(random_spec(Random(seed)), resolution=64).image.resize((32, 32))


def row(row_id: str, image: int | None, seed: int, strength: float = 0.75, **more: object) -> Row:
    values = {
        "row_id": row_id,
        "guidance": f"{image} {seed}" if image is None else f"{image}",
        "pixels": None if image is None else picture(image),
        "prompt": f"prompt {row_id}",
        "method": "sdedit",
        "place": Place(1, 1, 0, 0),
        "negative_prompt": "blurry",
        "seed": seed,
        "parameters": {**resolved(get("pnp"), {}), "strength": strength},
    }
    return Row(**{**values, **more})  # type: ignore[arg-type]


def drawn(seed: int, number: int = 0) -> torch.Tensor:
    """Noise number `number` of a seed, as latents (1, 4, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number + 1):
        noise = torch.randn(1, 4, tiny.SIDE, tiny.SIDE, generator=generator)
    return noise


def edited(engine: Engine, one: Row, x0: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """What the reference makes of latents (1, C, h, w), as a picture."""
    text = engine.model.text
    edit = reference.Edit(
        text(one.prompt)[None], text(one.negative_prompt)[None], one.guidance_scale, 0, 0
    )
    schedule = reference.noise_schedule(engine.model.files.configs["scheduler"], STEPS)
    unet, strength = engine.unet.module, one.parameters["strength"]
    made = reference.sdedit(unet, x0, noise, strength, edit, schedule)
    return np.asarray(engine.model.decode(made[0])).astype(int)


def made(engine: Engine, *rows: Row) -> dict[str, np.ndarray]:
    outcomes = {outcome.row.row_id: outcome for outcome in engine.translate(rows)}
    assert all(outcome.latents_key is None for outcome in outcomes.values())
    return {name: np.asarray(o.image).astype(int) for name, o in outcomes.items()}


@pytest.mark.parametrize(("layout", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction")])
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.7, 0.85, 1.0])
def test_every_row_of_a_batch_is_the_references(unets, layout, prediction, strength):
    unet, owner, scale = unets[layout], [0, 1, 1], [7.5, 1.0, 4.0]
    schedule, noise = both_schedules(7, prediction)
    x0, fresh = latents(2), latents(3, seed=1)
    target, negative = texts(3, 2), texts(3, 3)
    batch = Batch(
        unet,
        schedule,
        Guidance(torch.empty(0), EMPTY.expand(2, -1, -1), torch.tensor(owner), x0),
        Prompts(target, negative, torch.tensor(scale)),
        fresh,
        {"strength": strength},
    )
    before = unet.evaluations
    result = SDEdit().translate(batch)
    cost = SDEdit().cost(Sampling(7), {"strength": strength})
    assert unet.evaluations - before == 3 * cost.translated
    assert not cost.inversion
    for n, image in enumerate(owner):
        edit = reference.Edit(target[[n]], negative[[n]], scale[n], 0, 0)
        by_hand = reference.sdedit(unet.module, x0[[image]], fresh[[n]], strength, edit, noise)
        assert far(result[[n]], by_hand) < TOLERANCE


@pytest.mark.parametrize("strength", [0.5, 0.75, 1.0])
def test_a_row_is_the_reference_of_its_picture_prompt_and_seed(engine, strength):
    one = row("a", image=1, seed=5, strength=strength)
    encoded = engine.model.encode(one.pixels)[None]
    expected = edited(engine, one, encoded, drawn(5))
    assert np.abs(made(engine, one)["a"] - expected).max() <= 1


def test_strength_0_is_the_reconstruction_of_the_vae(engine):
    one = row("a", image=1, seed=5, strength=0.0)
    through = engine.model.decode(engine.model.encode(one.pixels))
    assert (made(engine, one)["a"] == np.asarray(through)).all()


def test_strength_1_leaves_nothing_of_the_picture(engine):
    rows = [row(f"{n}", image=n, seed=5, strength=1.0, prompt="x") for n in range(2)]
    pictures = made(engine, *rows)
    assert (pictures["0"] == pictures["1"]).all()


def test_company_order_and_shape_change_nothing(engine):
    cells = [(0, 5, 0, 0), (0, 6, 0, 1), (1, 7, 1, 0), (1, 7, 1, 1)]
    together = [
        row(f"{k}", image, seed, place=Place(2, 2, slot, number))
        for k, (image, seed, slot, number) in enumerate(cells)
    ]
    expected = made(engine, *together)
    for one in together[::-1]:
        alone = made(engine, replace(one, place=Place(1, 1, 0, 0)))
        assert np.abs(alone[one.row_id] - expected[one.row_id]).max() <= 1
    # Two rows of one picture that differ in nothing but their seeds differ.
    places = {5: Place(1, 2, 0, 0), 6: Place(1, 2, 0, 1)}
    twins = made(engine, *(row(f"{s}", 0, s, prompt="x", place=p) for s, p in places.items()))
    assert np.abs(twins["5"] - twins["6"]).max() > 5


@pytest.mark.parametrize("strength", [0.0, 0.75])
def test_a_generated_guidance_image_is_edited_with_noise_of_its_own(engine, strength):
    one = row("a", image=None, seed=5, strength=strength, source_prompt="a car")
    text = engine.model.text
    schedule = reference.noise_schedule(engine.model.files.configs["scheduler"], STEPS)
    source, _ = reference.sample(
        engine.unet.module,
        drawn(5),
        text("a car")[None],
        text("")[None],
        SOURCE_GUIDANCE_SCALE,
        schedule,
    )
    expected = edited(engine, one, source, drawn(5, number=1))
    assert np.abs(made(engine, one)["a"] - expected).max() <= 1


def test_given_and_generated_images_share_batches_and_methods_share_images(engine):
    rows = [
        row(f"{method}-{image}", image, 5, method=method, source_prompt="a car", place=place)
        for method in ("pnp", "sdedit")
        for image, place in ((1, Place(2, 1, 0, 0)), (None, Place(2, 1, 1, 0)))
    ]
    together = {o.row.row_id: np.asarray(o.image).astype(int) for o in engine.translate(rows)}
    for one in rows:
        fresh = Engine(engine.model, sampling=Sampling(STEPS), resolution=32)
        (alone,) = fresh.translate([replace(one, place=Place(1, 1, 0, 0))])
        assert (alone.latents_key is None) == (one.method == "sdedit" or one.pixels is None)
        assert np.abs(np.asarray(alone.image).astype(int) - together[one.row_id]).max() <= 1
