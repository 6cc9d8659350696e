"""The picture world: deterministic, exactly masked, and captioned with all that it shows."""

import hashlib
import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch.world import (
    COLOURS,
    OBJECTS,
    RENDITIONS,
    SCENES,
    Spec,
    caption,
    draw,
    random_spec,
    samples,
)
from pnp_batch.world.captions import loose_caption
from pnp_batch.world.drawing import recast
from pnp_batch.world.spec import COLOURLESS

HOUSE = Spec("house", "red", "snow", "flat", 0.35, 0.5, 0.5, False, 7)


def digest(spec: Spec) -> str:
    return hashlib.sha256(draw(spec).image.tobytes()).hexdigest()


def test_the_vocabulary_is_large_enough():
    assert len(OBJECTS) >= 12
    assert len(COLOURS) >= 9
    assert len(SCENES) >= 6
    assert set(RENDITIONS) == {"flat", "sketch", "oil", "neon", "pixel", "blueprint"}


@pytest.mark.parametrize("rendition", RENDITIONS)
def test_equal_specs_draw_equal_pictures(rendition):
    spec = recast(HOUSE, rendition=rendition)
    assert digest(spec) == digest(recast(spec))


def test_another_process_draws_the_same_picture():
    spec = recast(HOUSE, rendition="oil")
    code = (
        "import hashlib; from pnp_batch.world import Spec, draw;"
        f"print(hashlib.sha256(draw({spec!r}).image.tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(spec)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_fills_its_mask_and_nothing_else(name):
    red = draw(recast(HOUSE, object=name))
    blue = draw(recast(HOUSE, object=name, colour="blue"))
    assert 0.08 < red.mask.mean() < 0.6
    assert (red.mask == blue.mask).all()
    changed = np.abs(np.asarray(red.image, int) - np.asarray(blue.image, int)).max(-1) > 40
    assert changed[red.mask].mean() > 0.4
    assert changed[~red.mask].mean() < 0.02


@pytest.mark.parametrize("resolution", [64, 128])
def test_resolution(resolution):
    drawing = draw(HOUSE, resolution)
    assert drawing.image.size == (resolution, resolution)
    assert drawing.image.mode == "RGB"
    assert drawing.mask.shape == (resolution, resolution)
    assert drawing.mask.dtype == bool


def test_the_same_seed_keeps_the_scene_when_the_object_changes():
    house, cat = draw(HOUSE), draw(recast(HOUSE, object="cat"))
    outside = ~(house.mask | cat.mask)
    far = np.abs(np.asarray(house.image, int) - np.asarray(cat.image, int)).max(-1)[outside]
    assert (far > 0).mean() < 0.05


@pytest.mark.parametrize("rendition", RENDITIONS)
def test_captions_name_what_is_visible(rendition):
    spec = recast(HOUSE, rendition=rendition)
    words = caption(spec)
    assert "house" in words
    assert "in the snow" in words
    assert ("red" in words) == (rendition not in COLOURLESS)


@pytest.mark.parametrize("rendition", COLOURLESS)
def test_colourless_renditions_hide_the_colour(rendition):
    spec = recast(HOUSE, rendition=rendition)
    assert digest(spec) == digest(recast(spec, colour="blue"))


def test_captions_use_the_right_article():
    spec = recast(HOUSE, colour="orange", rendition="oil")
    assert caption(spec) == "an oil painting of an orange house in the snow"


def test_loose_captions_say_nothing_wrong():
    rng = random.Random(0)
    for _ in range(200):
        spec = random_spec(rng)
        words = set(loose_caption(spec, rng).replace(",", "").split())
        assert not words & (set(COLOURS) - {spec.colour})
        assert not words & (set(OBJECTS) - {spec.object})


def test_random_specs_are_reproducible_and_obey():
    assert random_spec(random.Random(3)) == random_spec(random.Random(3))
    fixed = [random_spec(random.Random(k), object="cat", rendition="neon") for k in range(60)]
    assert {s.object for s in fixed} == {"cat"}
    assert "black" not in {s.colour for s in fixed}
    with pytest.raises(ValueError, match="colr"):
        random_spec(random.Random(0), colr="red")


def test_the_shipped_sample_is_what_the_world_draws(tmp_path):
    samples.write(samples.shown_rows(), tmp_path / "sample.parquet")
    shipped = pq.read_table(samples.SHIPPED).to_pylist()
    drawn = pq.read_table(tmp_path / "sample.parquet").to_pylist()
    assert [(r["row_id"], r["prompt"]) for r in shipped] == [
        (r["row_id"], r["prompt"]) for r in drawn
    ]
    for a, b in zip(shipped, drawn, strict=True):
        pixels = [np.asarray(samples.opened(row["image"]["bytes"]), int) for row in (a, b)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 2
        assert len(a["prompt"]) == 2


def test_any_number_of_rows(tmp_path):
    samples.write(samples.many_rows(5, seed=1, resolution=32), tmp_path / "many.parquet")
    rows = pq.read_table(tmp_path / "many.parquet").to_pylist()
    assert len({row["row_id"] for row in rows}) == 5
    assert all(len(row["prompt"]) == 1 for row in rows)
    picture = samples.opened(rows[0]["image"]["bytes"])
    assert isinstance(picture, Image.Image)
    assert picture.size == (32, 32)
