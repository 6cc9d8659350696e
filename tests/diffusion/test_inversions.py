"""Ways back from an inverted image: what `inversion` does to ddim, pnp and reconstruct."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from pnp_batch import methods, parameters
from pnp_batch.batches import Place
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.null_text import null_text
from pnp_batch.diffusion.sampling import Guidance
from pnp_batch.engine import Engine
from pnp_batch.errors import InvalidConfig, InvalidRow
from pnp_batch.methods.base import Asked
from pnp_batch.methods.ddim import DDIM
from pnp_batch.methods.pnp import PlugAndPlay
from pnp_batch.methods.reconstruct import Reconstruct
from pnp_batch.models import StableDiffusion, find
from pnp_batch.origins import Row
from pnp_batch.steps import Sampling
from pnp_batch.world import draw, random_spec
from tests import reference, tiny
from tests import reference_control as by_hand
from tests.diffusion.editing import Scene
from tests.diffusion.scene import TOLERANCE, both_schedules, far, latents

ROWS = (Asked("a blue cat", seed=3), Asked("a cat", "ugly", seed=3), Asked("a dog", seed=5))
NO_INJECTION = {"pnp_f_t": 0.0, "pnp_attn_t": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weak in x and strong in the prompt, so that there is a way back to be found."""
    unet = tiny.new_unet("sd1", strength=0.3, **tiny.DECODER_ATTENTION_ONLY)
    folder = tmp_path_factory.mktemp("model")
    return StableDiffusion(find(str(tiny.save_model(folder / "sd1", "sd1", unet))))


@pytest.fixture
def scene(model):
    return Scene(model, 2, ["a red cat", ""], [0, 0, 1], ROWS, [7.5, 4.0, 2.0])


def given(scene: Scene, **more: object) -> Scene:
    return replace(scene, given={**scene.given, **more})


def result(scene: Scene, method) -> torch.Tensor:
    found, evaluations = scene.evaluated(method)
    assert evaluations == scene.cost(method)
    return found


# ------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("deep_every", [1, 2])
def test_ddim_is_pnp_without_injection(scene, deep_every):
    scene = replace(scene, steps=3)
    schedule, _ = both_schedules(3, deep_every=deep_every)
    plain, injected = (
        method.translate(replace(case.batch(method), schedule=schedule))
        for method, case in (
            (DDIM(), scene),
            (PlugAndPlay(), given(scene, **NO_INJECTION)),
        )
    )
    assert torch.equal(plain, injected)
    cost = DDIM().cost(Sampling(3, deep_every=deep_every), {})
    whole, shallow = Sampling(3, deep_every=deep_every).evaluations(3)
    assert (cost.translated, cost.translated_shallow) == (2 * whole, 2 * shallow)


def test_ddim_is_the_references_sampling(scene):
    found = result(scene, DDIM())
    for n, image in enumerate(scene.owner):
        start = scene.image(image).trajectory[scene.noise.timesteps[0]]
        row = scene.row(n)
        expected = by_hand.sample(
            scene.model.unet, start, row.target, row.negatives, row.scale, scene.noise
        )
        assert far(found[[n]], expected) < TOLERANCE


def test_direct_changes_nothing_in_pnp(scene):
    batch = scene.batch(PlugAndPlay())
    unaware = {name: value for name, value in batch.parameters.items() if name != "inversion"}
    direct = given(scene, inversion="direct").batch(PlugAndPlay())
    found = PlugAndPlay().translate(batch)
    assert torch.equal(found, PlugAndPlay().translate(direct))
    assert torch.equal(found, PlugAndPlay().translate(replace(batch, parameters=unaware)))


# ---------------------------------------------------------------------------- negative prompt


def test_the_source_prompt_stands_in_the_empty_ones_place(scene):
    scene = replace(scene, steps=3)
    found = result(given(scene, inversion="negative-prompt", pnp_f_t=0.5), PlugAndPlay())
    for n, image in enumerate(scene.owner):
        own, source = scene.rows[n].negative_prompt, scene.sources[image]
        edit = reference.Edit(
            scene.text(scene.rows[n].prompt), scene.text(own or source), scene.scale[n], 0.5, 0.5
        )
        there = scene.image(image)
        expected = reference.translate(
            scene.model.unet, there.trajectory, there.text, edit, scene.noise
        )
        assert far(found[[n]], expected) < TOLERANCE
    plain = result(given(scene, pnp_f_t=0.5), PlugAndPlay())
    # The second row has a negative prompt of its own, the third image's source prompt is empty.
    assert [far(a, b) > TOLERANCE for a, b in zip(found, plain, strict=True)] == [1, 0, 0]


# -------------------------------------------------------------------------------- null-text


@pytest.fixture(scope="module")
def inverted(model):
    """Images inverted with their prompts, of which two were sampled without one: they are on their
    way, or near it. And what null-text finds for them, with how many evaluations."""
    prompts = ["a red cat", "", ""]
    schedule, noise = both_schedules(3)
    text = torch.stack([model.text(prompt) for prompt in prompts])
    x0 = latents(3, seed=4)
    unet = Engine(model, sampling=Sampling(3), resolution=32).unet
    trajectory = invert(unet, x0, text, schedule).clone()
    empty = text[[1]].clone()
    end, met = reference.sample(unet.module, latents(1), empty, empty, 7.5, noise)
    for n, off in ((1, 0.0), (2, 0.01)):
        x0[n] = end[0] + off * latents(1, seed=6)[0]
        trajectory[:, n] = torch.cat([met[t] for t in noise.timesteps])
        trajectory[1:, n] += off * latents(2, seed=7)
    guidance = Guidance(trajectory, text, torch.arange(3), x0)
    before = unet.evaluations
    found = null_text(unet, guidance, model.text("").clone(), schedule, 7.5)
    return unet, guidance, noise, found, unet.evaluations - before


def images(guidance: Guidance, noise: reference.Noise) -> list[by_hand.Image]:
    return [
        by_hand.Image(
            {t: x[[n]].clone() for t, x in zip(noise.timesteps, guidance.trajectory, strict=True)},
            guidance.x0[[n]],
            guidance.text[[n]].clone(),
        )
        for n in range(len(guidance.x0))
    ]


def test_null_text_is_the_references_for_each_image_whenever_others_stop(model, inverted):
    unet, guidance, noise, found, evaluations = inverted
    empty = model.text("").clone()
    assert found.shape == (3, *guidance.text.shape)
    assert not found.requires_grad
    taken = []
    for n, image in enumerate(images(guidance, noise)):
        expected, steps = by_hand.null_text(unet.module, image, empty[None], noise)
        taken.append(steps)
        assert far(found[:, [n]], torch.stack(expected)) < 10 * TOLERANCE
    # All are evaluated until the last one is near enough.
    assert max(taken[0]) == 10
    assert taken[1] == [1, 1, 1]
    # What is near enough grows with the steps.
    assert taken[2][0] > 1
    assert taken[2][2] == 1
    most = [max(steps) for steps in zip(*taken, strict=True)]
    assert evaluations == 3 * sum(2 + steps for steps in most)


def test_null_text_finds_the_way_back(model, inverted):
    unet, guidance, noise, found, _ = inverted
    empty = model.text("").clone()
    image = images(guidance, noise)[0]
    start = image.trajectory[noise.timesteps[0]]
    off, kept = (
        by_hand.sample(unet.module, start, image.text, negatives, 7.5, noise)
        for negatives in ([empty[None]] * 3, list(found[:, :1]))
    )
    distance = [float((x - image.x0).square().mean()) for x in (off, kept)]
    assert distance[1] < 0.7 * distance[0]


def test_rows_sample_with_what_null_text_found_unless_they_have_a_negative_prompt(scene):
    scene = given(scene, inversion="null-text")
    found, evaluations = scene.evaluated(DDIM())
    # A bound: images that are near enough stop early.
    assert evaluations <= scene.cost(DDIM())
    cost = DDIM().cost(Sampling(2), scene.values(DDIM()))
    assert (cost.guidance_whole, cost.guidance_gradients) == (2 * 12, 2 * 10)
    for n, image in enumerate(scene.owner):
        start = scene.image(image).trajectory[scene.noise.timesteps[0]]
        row = scene.row(n)
        expected = by_hand.sample(
            scene.model.unet, start, row.target, row.negatives, row.scale, scene.noise
        )
        assert far(found[[n]], expected) < TOLERANCE
    unaware = given(scene, **NO_INJECTION)
    injected, again = unaware.evaluated(PlugAndPlay())
    assert far(injected, found) < TOLERANCE
    assert again == evaluations <= unaware.cost(PlugAndPlay()) == scene.cost(DDIM())


def test_reconstruction_by_null_text_is_guided_sampling_with_the_source_prompt(scene):
    guided = given(scene, inversion="null-text")
    found, evaluations = guided.evaluated(Reconstruct())
    assert evaluations <= guided.cost(Reconstruct())
    for n, image in enumerate(guided.owner):
        there = guided.image(image)
        expected = by_hand.sample(
            guided.model.unet,
            there.trajectory[guided.noise.timesteps[0]],
            there.text,
            guided.negatives(image),
            7.5,
            guided.noise,
        )
        assert far(found[[n]], expected) < TOLERANCE
    assert scene.cost(Reconstruct()) == scene.evaluated(Reconstruct())[1] == 2 * 3


# ----------------------------------------------------------------------------- edit-friendly


def drawn(seed: int, steps: int) -> torch.Tensor:
    """The second draw of a seed: noise of each level, (steps, 1, C, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, 4, tiny.SIDE, tiny.SIDE)
    torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)[:, None]


def expected(scene: Scene, n: int) -> torch.Tensor:
    asked, there = scene.rows[n], scene.image(scene.owner[n])
    texts = there.text, *map(scene.text, ("", asked.prompt, asked.negative_prompt))
    noise = drawn(asked.seed, scene.steps)
    return by_hand.edit_friendly(
        scene.model.unet, there.x0, noise, *texts, scene.scale[n], scene.noise
    )


@pytest.mark.parametrize("prediction", tiny.PREDICTIONS)
def test_edit_friendly_noise_is_the_references(scene, prediction):
    friendly = given(replace(scene, steps=3, prediction=prediction), inversion="edit-friendly")
    found = result(friendly, DDIM())
    for n in range(3):
        assert far(found[[n]], expected(friendly, n)) < TOLERANCE
        alone, _ = friendly.only(n).evaluated(DDIM())
        assert far(alone, found[[n]]) < TOLERANCE


def test_a_level_without_noise_has_no_z(scene):
    friendly = given(replace(scene.only(0), steps=3), inversion="edit-friendly")
    schedule, noise = both_schedules(3, set_alpha_to_one=True)
    found = DDIM().translate(replace(friendly.batch(DDIM()), schedule=schedule))
    there, asked = friendly.image(0), friendly.rows[0]
    texts = there.text, *map(scene.text, ("", asked.prompt, ""))
    by_reference = by_hand.edit_friendly(
        scene.model.unet, there.x0, drawn(3, 3), *texts, 7.5, noise
    )
    assert far(found, by_reference) < TOLERANCE


def test_edit_friendly_noise_leads_back_with_the_source_prompt(scene):
    rows = [Asked("a red cat", seed=seed) for seed in (1, 2)]
    back = replace(scene, steps=3, owner=[0, 0], rows=rows, scale=[3.5, 3.5])
    found = result(given(back, inversion="edit-friendly"), DDIM())
    assert far(found, back.latents[0][[0, 0]]) < TOLERANCE
    edited = result(given(replace(back, scale=[7.5, 7.5]), inversion="edit-friendly"), DDIM())
    assert far(edited[0], edited[1]) > 10 * TOLERANCE  # each seed has noise of its own


def test_the_first_share_of_the_steps_is_left_out():
    given = {"inversion": "edit-friendly"}
    evaluated = {n: DDIM().cost(Sampling(n), given).translated for n in (1, 3, 50, 100)}
    assert evaluated == {1: 4, 3: 8, 50: 4 * 32, 100: 4 * 64}


@pytest.mark.parametrize(
    ("method", "inversion"),
    [(PlugAndPlay(), "edit-friendly"), (DDIM(), "direct"), (Reconstruct(), "direct")],
    ids=lambda one: getattr(one, "name", one),
)
def test_an_inversion_that_does_not_apply_is_refused(method, inversion):
    with pytest.raises(InvalidConfig, match=inversion):
        method.check({"inversion": inversion})


# -------------------------------------------------------------------- from pictures to pictures


@pytest.fixture
def engine(model):
    return Engine(model, sampling=Sampling(2), resolution=32)


def row(row_id: str, method: str, given: dict, image: int | None = 1, **more: object) -> Row:
    picture = None if image is None else draw(random_spec(Random(image)), resolution=64).image
    values = {
        "row_id": row_id,
        "guidance": f"{image}",
        "pixels": picture and picture.resize((32, 32)),
        "prompt": "a red cat",
        "method": method,
        "place": Place(1, 1, 0, 0),
        "source_prompt": "a red cat",
        "seed": 5,
        "guidance_scale": 3.5,
        "parameters": parameters.resolved(methods.get(method), given),
    }
    return Row(**{**values, **more})  # type: ignore[arg-type]


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("image", [1, None], ids=["given", "generated"])
def test_methods_are_led_back_to_the_picture_itself(engine, image):
    blended = {"inversion": "direct", "local_blend": True, "mask_threshold": 1.0}
    rows = [
        row("pnp", "pnp", {}, image),
        row("ddim", "ddim", {"inversion": "edit-friendly"}, image),
        row("p2p", "p2p", blended, image, prompt="a red dog"),
        row("null", "reconstruct", {"inversion": "null-text"}, image),
    ]
    made = {o.row.row_id: o.image for o in engine.translate(rows)}
    (one,) = [row for row in rows if row.method == "pnp"]
    (origin,) = engine.origins.find([one], DDIM()).values()
    x0 = origin.x0 if image is None else engine.model.encode(one.pixels)
    through = pixels(engine.model.decode(x0))
    for name in ("ddim", "p2p"):
        assert np.abs(pixels(made[name]) - through).max() <= 1
    assert np.abs(pixels(made["pnp"]) - through).max() > 1
    assert made["null"] is not None


def test_a_row_that_asks_for_what_cannot_be_is_an_error_alone(engine):
    rows = [
        row(
            word,
            "p2p",
            {"inversion": "direct"},
            own={"reweight": f"{word}=2"},
            place=Place(1, 2, 0, n),
        )
        for n, word in enumerate(("cat", "dog"))
    ]
    outcomes = {outcome.row.row_id: outcome for outcome in engine.translate(rows)}
    assert outcomes["cat"].image is not None
    assert isinstance(outcomes["dog"].error, InvalidRow)
