"""A job whose manifest, images, output and cache lie in an object store, of every kind."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pnp_batch import pipeline
from pnp_batch.storage import Storage
from tests.pipeline.conftest import Jobs, pixels, rows_of
from tests.pipeline.test_commands import call

if TYPE_CHECKING:
    from pnp_batch.pipeline import Progress


@pytest.mark.parametrize(
    "store", ["s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gs", "az"))]
)
def test_a_job_in_a_store_is_interrupted_resumed_and_reported(
    jobs: Jobs, store: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    image = jobs.picture("a.png", 1)
    place = Storage(request.getfixturevalue(store)("whole-job"))
    place.write("in/pictures/a.png", (jobs.folder / "a.png").read_bytes())
    uri = f"{place.uri}/in/pictures/a.png"
    lines = [
        *({"row_id": f"row-{n}", "image": "pictures/a.png", "prompt": "x"} for n in range(3)),
        {"row_id": "absolute", "image": uri, "prompt": "x", "method": "reconstruct"},
        {"row_id": "gone", "image": "pictures/b.png", "prompt": "x"},
    ]
    place.write("in/m.jsonl", "\n".join(map(json.dumps, lines)).encode())
    output, cache = f"{place.uri}/out", f"{place.uri}/cache"
    more = {"cache": cache, "method": "copy", "drain_timeout": 600}  # on a busy machine as well
    config = jobs.config(f"{place.uri}/in/m.jsonl", output, **more)

    def interrupt(progress: Progress) -> None:
        if progress.phase == "waiting for workers":
            os.kill(os.getpid(), signal.SIGINT)

    assert pipeline.run(config, interrupt).state == "interrupted"
    result = pipeline.run(config)
    assert (result.state, result.summary.done, result.summary.failed) == ("done", 4, 1)
    rows = rows_of(output)
    errors = {row_id: row["error_type"] for row_id, row in rows.items() if row["error_type"]}
    assert errors == {"gone": "ImageNotFound"}
    assert (pixels(output, rows["row-0"]) == np.asarray(image)).all()
    assert len(Storage(cache).files()) == 1

    capsys.readouterr()
    assert call("status", output, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["failed"]) == (4, 1)
    assert call("report", output) == 0
    assert Storage(output).exists("report/index.html")
    assert not Storage(output).exists("lease.json")
