"""`Translator`: the library's promise, with the shapes and names of the contract."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pnp_batch import Translator
from pnp_batch.errors import InvalidConfig, InvalidModel, InvalidRow
from pnp_batch.world import draw, random_spec
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def translator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Translator:
    folder = tiny.save_model(tmp_path_factory.mktemp("model") / request.param, request.param)
    return Translator.load(str(folder), device="cpu", dtype="float32")


def pictures(count: int) -> list[Image.Image]:
    """Drawn pictures of several sizes and modes."""
    drawn = [draw(random_spec(Random(n)), resolution=64).image for n in range(count)]
    return [image.resize((40 + 8 * n, 50)) for n, image in enumerate(drawn)]


def far(a: Image.Image, b: Image.Image) -> int:
    """Largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def test_a_text_gives_a_picture_and_a_list_gives_a_list(translator: Translator) -> None:
    made = translator.translate(pictures(3), ["a cat", ["a dog", "a tree"], ["a hat"]], steps=3)
    assert isinstance(made[0], Image.Image)
    assert [type(entry) for entry in made] == [Image.Image, list, list]
    flat = [made[0], *made[1], *made[2]]  # type: ignore[misc]
    assert {(image.mode, image.size) for image in flat} == {("RGB", (32, 32))}
    assert far(made[1][0], made[1][1]) > 1  # type: ignore[index]
    assert translator.translate([], []) == []


def test_pictures_do_not_depend_on_their_company(translator: Translator) -> None:
    images = pictures(4)
    prompts = ["a cat", ["a dog", "a tree"], "a boat", ["a hat"]]
    together = translator.translate(images, prompts, steps=4)
    for image, prompt, expected in zip(images, prompts, together, strict=True):
        (alone,) = translator.translate([image], [prompt], steps=4, batch_size=1)
        pairs = (
            zip(alone, expected, strict=True) if isinstance(alone, list) else [(alone, expected)]
        )
        assert all(far(a, b) <= 1 for a, b in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 1.0},
        {"negative_prompt": "blue"},
        {"pnp_f_t": 0.0},
        {"pnp_attn_t": 0.0},
        {"pnp_f_layers": "7"},
        {"pnp_attn_layers": "4-8"},
        {"inversion_steps": 8},
        {"method": "reconstruct"},
        {"method": "sdedit"},
        {"method": "pnp-mask", "subject": "cat", "mask_threshold": 0.5},
        {"fit": "stretch"},
    ],
)
def test_every_parameter_shapes_the_picture(
    translator: Translator, change: dict[str, float]
) -> None:
    image = pictures(2)[1:]
    plain = translator.translate(image, ["a cat"], steps=4)[0]
    changed = translator.translate(image, ["a cat"], steps=4, **change)[0]
    assert far(plain, changed) > 1  # type: ignore[arg-type]


def test_copy_is_the_prepared_image(
    translator: Translator,
) -> None:
    (image,) = pictures(1)
    (copied,) = translator.translate([image.resize((32, 32))], ["x"], method="copy")
    assert far(copied, image.resize((32, 32))) == 0  # type: ignore[arg-type]


def test_a_cache_spares_the_inversion_of_a_picture_seen_before(
    translator: Translator, tmp_path: Path
) -> None:
    cached = Translator(translator.model, cache=str(tmp_path / "latents"))
    image = pictures(1)
    first = cached.translate(image, ["a cat"], steps=3)
    (entry,) = (tmp_path / "latents").rglob("*.safetensors")
    written = entry.stat().st_mtime_ns
    evaluated: list[int] = []
    watch = translator.model.unet.register_forward_pre_hook(lambda *_: evaluated.append(1))
    again = cached.translate(image, ["a cat"], steps=3)
    plain = translator.translate(image, ["a cat"], steps=3)
    watch.remove()
    assert far(first[0], again[0]) == far(first[0], plain[0]) == 0  # type: ignore[arg-type]
    assert len(evaluated) == 5 + 8  # guidance 2, translated 3; and 3 more for an inversion
    assert entry.stat().st_mtime_ns == written


def test_masks_have_the_shape_of_the_prompts(translator: Translator) -> None:
    given = {"steps": 3, "pnp_f_t": 1.0, "subject": "cat", "mask_threshold": 0.5}
    made = translator.masks(pictures(2), ["a cat", ["a cat", "my cat"]], **given)
    flat = [made[0], *made[1]]
    for masks in flat:
        assert list(masks) == ["source mask", "target mask"]  # type: ignore[arg-type]
        assert {(m.mode, m.size) for m in masks.values()} == {("L", (32, 32))}  # type: ignore[union-attr]
    assert len({masks["source mask"].tobytes() for masks in flat}) == 3  # type: ignore[call-overload]
    assert translator.masks(pictures(1), ["a cat"], method="pnp", steps=1) == [{}]
    assert translator.masks(pictures(1), ["a cat"], steps=1, pnp_f_t=0, pnp_attn_t=0) == [{}]


def test_a_picture_is_inverted_with_what_it_shows(translator: Translator) -> None:
    image = pictures(1)[0]

    def made(told: list[str], count: int = 1) -> list[Image.Image]:
        asked = {"source_prompts": told, "method": "reconstruct", "steps": 3}
        found = translator.translate([image] * count, ["a cat"] * count, **asked)
        return [one for one in found if isinstance(one, Image.Image)]

    both = made(["a dog", ""], 2)
    alone = [*made(["a dog"]), *made([])]
    assert far(*alone) > 1
    assert [far(one, other) <= 1 for one, other in zip(both, alone, strict=True)] == [True, True]
    with pytest.raises(InvalidConfig, match="1 images but 2 source prompts"):
        made(["a dog", "a cat"])


def test_wrong_calls_are_refused_by_name(translator: Translator, tmp_path: Path) -> None:
    image = pictures(1)
    with pytest.raises(InvalidConfig, match=r"guidence_scale"):
        translator.translate(image, ["x"], guidence_scale=3.0)
    with pytest.raises(InvalidConfig, match=r"pnp_f_t.*1.5"):
        translator.translate(image, ["x"], pnp_f_t=1.5)
    with pytest.raises(InvalidConfig, match="1 images but 2 prompts"):
        translator.translate(image, ["x", "y"])
    with pytest.raises(InvalidRow, match="prompt 0-1"):
        translator.translate(image, [["x", ""]])
    with pytest.raises(InvalidModel, match="no such directory"):
        Translator.load(str(tmp_path / "nowhere"))
