"""A sweep in one run: what its rows share is made once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pnp_batch.storage import Storage
from tests.pipeline.conftest import rows_of
from tests.pipeline.test_commands import call

if TYPE_CHECKING:
    from tests.pipeline.conftest import Jobs


@pytest.mark.long
def test_a_sweep_inverts_each_image_once(jobs: Jobs) -> None:
    for name in "ab":
        jobs.picture(f"{name}.png", ord(name))
    whole = jobs.manifest([{"row_id": n, "image": f"{n}.png", "prompt": f"a {n}"} for n in "ab"])
    swept = str(jobs.folder / "sweep.parquet")
    asked = ("--set", "pnp_f_t=0.0,0.5,1.0", "--set", "guidance_scale=3,9")
    assert call("manifest", "sweep", whole, *asked, "--output", swept) == 0
    result = jobs.run(swept)
    rows = rows_of(result.output)
    assert (result.total, result.summary.done) == (12, 12)
    assert result.progress.inverted == 2
    assert json.loads(Storage(result.output).read("run.json"))["counts"]["inverted"] == 2
    for name in "ab":
        own = [row for row_id, row in rows.items() if row_id.startswith(f"{name}__")]
        assert len({row["sha256"] for row in own}) == len(own) == 6
        assert len({row["latents_key"] for row in own}) == 1
        assert len({row["seed"] for row in own}) == 1
