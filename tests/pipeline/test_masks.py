"""Runs of `pnp-mask` leave each row's masks beside its image, the same bytes in every run."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pnp_batch import gc
from pnp_batch.engine import Engine
from pnp_batch.models import StableDiffusion, find
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage
from tests.diffusion.test_pnp_mask import row
from tests.pipeline.conftest import Jobs, recorded, rows_of

ROWS = [
    {"row_id": "a", "image": "a.png", "prompt": ["a red cat", "a blue cat"], "method": "pnp-mask"},
    {"row_id": "../b", "image": "b.png", "prompt": "a dog", "method": "pnp-mask"},
    {"row_id": "plain", "image": "a.png", "prompt": "a red cat", "method": "pnp"},
    {"row_id": "gone", "image": "c.png", "prompt": "a dog", "method": "pnp-mask"},
]
GIVEN = {"mask_threshold": 0.5, "subject": "cat dog", "pnp_attn_t": 0.7}


def masks(output: str) -> dict[str, bytes]:
    storage = Storage(output)
    return {name: storage.read(name) for name in storage.files("masks")}


def test_masks_lie_beside_images_whatever_happens_to_the_run(jobs: Jobs) -> None:
    pictures = [jobs.picture(f"{name}.png", seed) for seed, name in enumerate("ab")]
    output = jobs.run(jobs.manifest(ROWS), **GIVEN).output
    made = rows_of(output)
    assert {name for name, one in made.items() if one["status"] == "ok"} == set(made) - {"gone"}
    expected = {
        name: one["output"].replace("images/", "masks/")
        for name, one in made.items()
        if one["method"] == "pnp-mask" and one["status"] == "ok"
    }
    before = masks(output)
    assert set(before) == set(expected.values())
    assert len(before) == 3

    model = StableDiffusion(find(str(jobs.model)))
    values = {"prompt": "a dog", "mask_threshold": 0.5, "pnp_f_t": 0.8, "pnp_attn_t": 0.7}
    one = row(1, "cat dog", **values)
    engine = Engine(model, sampling=Sampling(4), resolution=32)
    (alone,) = engine.translate([one])
    sides = [np.asarray(picture).astype(int) for picture in alone.pictures().values()]
    with Image.open(io.BytesIO(before[expected["../b"]])) as image:
        found = np.asarray(image.convert("L")).astype(int)
    assert np.array_equal(np.asarray(one.pixels), np.asarray(pictures[1]))
    assert np.abs(found - np.hstack(sides)).max() <= 1

    storage = Storage(output)
    storage.write("masks/00/left.png", b"of a killed run")
    assert gc.collect(output).leftovers == ("masks/00/left.png",)
    assert gc.collect(output, delete=True).deleted
    assert masks(output) == before
    for name in (*storage.files("results"), *before):
        storage.delete(name)
    jobs.run(jobs.manifest(ROWS), **GIVEN)
    assert masks(output) == before


@pytest.mark.long
def test_a_shard_holds_the_masks_too(jobs: Jobs) -> None:
    for seed, name in enumerate("ab"):
        jobs.picture(f"{name}.png", seed)
    output = jobs.run(jobs.manifest(ROWS), sink="webdataset", **GIVEN).output
    assert not masks(output)
    storage, members = Storage(output), set()
    for shard in storage.files("shards"):
        with tarfile.open(fileobj=io.BytesIO(storage.read(shard))) as tar:
            members |= {name for name in tar.getnames() if name.endswith(".masks.png")}
    rows = [one for one in recorded(output).to_pylist() if one["status"] == "ok"]
    keys = {one["member"].removesuffix(".png"): one["method"] for one in rows}
    assert members == {f"{key}.masks.png" for key, method in keys.items() if method == "pnp-mask"}
    assert gc.collect(output).leftovers == ()
