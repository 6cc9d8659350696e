"""One shared local Ray, a tiny real model, drawn pictures, and a way to run jobs over them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch import cluster, pipeline
from pnp_batch.config import RunConfig
from pnp_batch.storage import Storage
from pnp_batch.world import draw, random_spec
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """The suite's one Ray instance, which jobs use because it is there."""
    with cluster.connected(None, workers=2):
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny real Stable Diffusion for pictures of 32 x 32."""
    return tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1")


class Jobs:
    """A folder of pictures, and runs over manifests of them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model

    def picture(self, name: str, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
        """Draws and saves a picture that is its own for every seed."""
        image = draw(random_spec(Random(seed)), resolution=64).image.resize(size)
        image.save(self.folder / name)
        return image

    def manifest(self, rows: list[dict[str, Any]], name: str = "manifest.jsonl") -> str:
        """Writes a JSON Lines manifest."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def config(self, manifest: str, output: str | None = None, **more: Any) -> RunConfig:
        """A job of few steps on the CPU."""
        where = output or str(self.folder / "out")
        values = {"model": str(self.model), "steps": 4, "device": "cpu", "workers": 1, **more}
        return RunConfig(manifest=manifest, output=where, **values)

    def run(self, manifest: str, output: str | None = None, **more: Any) -> pipeline.RunResult:
        """Runs a job."""
        return pipeline.run(self.config(manifest, output, **more))


@pytest.fixture
def jobs(tmp_path: Path, model: Path, shared_ray: None) -> Jobs:
    """Jobs in a folder of their own."""
    return Jobs(tmp_path, model)


def recorded(output: str) -> pa.Table:
    """All result files of an output, read together by nothing but pyarrow."""
    storage = Storage(output)
    names = [name for name in storage.files("results") if name.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(io.BytesIO(storage.read(name))) for name in names])


def rows_of(output: str) -> dict[str, dict[str, Any]]:
    """The results by row id; fails if a row is recorded twice."""
    rows = recorded(output).to_pylist()
    by_id = {row["row_id"]: row for row in rows}
    assert len(by_id) == len(rows), "a row is recorded more than once"
    return by_id


def pixels(output: str, row: dict[str, Any]) -> np.ndarray:
    """The pixels of a row's image, as signed numbers."""
    with Image.open(io.BytesIO(Storage(output).read(row["output"]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder runs jobs on Ray."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.ray)
