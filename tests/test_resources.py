"""What a job runs on: how many rows fit a GPU, and the same rows in other batches."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pnp_batch.config import RunConfig
from pnp_batch.job import prepare
from pnp_batch.models import find
from pnp_batch.resources import LARGEST_GPU_BATCH, gpu_batch_size
from tests import tiny

GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1")


def test_more_rows_fit_more_memory_and_fewer_a_larger_picture(folder):
    model = find(str(folder))
    sizes = [gpu_batch_size(model, 512, "bfloat16", free) for free in (GIB // 4, GIB, 80 * GIB)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1]
    assert sizes[2] == LARGEST_GPU_BATCH
    assert gpu_batch_size(model, 1024, "bfloat16", GIB) == pytest.approx(sizes[1] / 4, abs=1)
    assert gpu_batch_size(model, 512, "float32", GIB) == pytest.approx(sizes[1] / 2, abs=1)
    assert gpu_batch_size(model, 512, "bfloat16", 0) == 1


def test_a_job_in_other_batches_is_the_job_that_asks_for_them(folder, tmp_path):
    rows = [{"row_id": f"r{n}", "image": f"{n % 7}.png", "prompt": "x"} for n in range(30)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def job(**values):
        manifest, output = str(tmp_path / "m.jsonl"), str(tmp_path / "out")
        return prepare(RunConfig(manifest, output, model=str(folder), limit=25, **values))

    made, wanted = job().in_batches_of(3, ahead=False), job(batch_size=3)
    assert made.batch_size == wanted.batch_size == 3
    for name in ("images", "share", "slot", "number"):
        assert np.array_equal(getattr(made.places, name), getattr(wanted.places, name))
    assert not np.array_equal(job().places.share, wanted.places.share)
