"""A method of somebody else's package: built as a wheel, installed by pip, used by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from pnp_batch.world import draw, random_spec
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
MODULE = '''
from pnp_batch.methods import Cost, Method
from pnp_batch.option import Option


class Glow(Method):
    """One step of sampling from the image's latents, made brighter."""

    name = "glow"
    summary = "brightens the guidance image"
    paper = "nobody's"
    parameters = ("guidance_scale", "glow")
    options = {"glow": Option("how much brighter", type=float, low=0.0, high=1.0, shapes=True)}
    defaults = {"glow": 0.1}
    inverts = False

    def cost(self, sampling, parameters):
        return Cost(translated=2)

    def translate(self, batch):
        from pnp_batch.diffusion.sampling import sample

        x = batch.guidance.x0.index_select(0, batch.guidance.owner)
        x = x * (1 + batch.parameters["glow"])
        return sample(batch.unet, x, batch.prompts, batch.schedule, first=batch.schedule.steps - 1)
'''
# A name of the package's own, which no plug-in takes, and one whose module is not there.
ENTRY_POINTS = """
[pnp_batch.methods]
glow = glowing:Glow
pnp = glowing:Glow
torn = nowhere:Glow
"""
INFO = "glowing-1.0.dist-info"


def wheel(folder: Path) -> Path:
    """A wheel of the module, as any build backend would make it."""
    files = {
        "glowing.py": MODULE,
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: glowing\nVersion: 1.0\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{INFO}/entry_points.txt": ENTRY_POINTS,
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{INFO}/RECORD"))
    path = folder / "glowing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{INFO}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, a tiny model, and a manifest of three rows."""
    folder = tmp_path_factory.mktemp("plugin")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--disable-pip-version-check", "--target", str(folder / "site")]
    subprocess.run([*install, *options, str(wheel(folder))], check=True)
    tiny.save_model(folder / "model", "sd1")
    draw(random_spec(Random(1)), 32).image.save(folder / "a.png")
    rows: list[dict[str, Any]] = [
        {"row_id": "job", "image": "a.png", "prompt": "x", "parameters": None},
        {"row_id": "own", "image": "a.png", "prompt": "x", "parameters": {"glow": 0.9}},
        {"row_id": "bad", "image": "a.png", "prompt": "x", "parameters": {"glow": 7.0}},
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def call(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a process that finds the package on its path, as Ray's workers then do."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(place / "site"), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "pnp_batch", *arguments],
            capture_output=True, text=True, check=False, cwd=place,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    return call


JOB = ("m.jsonl", "--model", "model", "--method", "glow", "--steps", "2", "--set", "glow=0.5")


def test_it_is_listed_and_takes_no_name_of_the_package(call, place):
    listed = json.loads(call("methods", "--json").stdout)
    methods = {one["name"]: one for one in listed["methods"]}
    glow = methods["glow"]
    assert glow["parameters"] == {"guidance_scale": 7.5, "glow": 0.1}
    assert glow["options"]["glow"]["help"] == "how much brighter"
    assert (glow["needs"], glow["inversions"]) == (["UNet", "VAE"], [])
    assert "2211.12572" in methods["pnp"]["paper"]
    assert "No module named 'nowhere'" in listed["broken"]["torn"]
    told = call("methods", "glow").stdout
    assert "--guidance-scale 7.5  --set glow=0.1\n" in told
    assert "--set glow=       how much brighter\n" in told
    torn = call("methods", "torn")
    assert torn.returncode == 4
    assert torn.stderr.startswith("error: method 'torn': nowhere:Glow cannot be loaded")


def test_it_is_counted_and_a_wrong_value_is_refused_by_name(call, place):
    plan = json.loads(call("plan", *JOB, "--json").stdout)
    assert (plan["rows"], plan["images"], plan["inversions_missing"]) == (3, 1, 0)
    assert plan["unet_evaluations"]["translated"] == 2 * 2  # the third row is refused
    for value, told in (
        ("2", "glow: 2.0 is outside 0..1"),
        ("much", "glow: expected float, got 'much'"),
    ):
        wrong = call("plan", *JOB[:-1], f"glow={value}")
        assert wrong.returncode == 4
        assert wrong.stderr.startswith(f"error: {told}")
    unknown = call("plan", *JOB[:-1], "glew=1").stderr
    assert "no method has a parameter 'glew'" in unknown
    assert "did you mean 'glow'?" in unknown


@pytest.mark.ray
@pytest.mark.long  # in short, plug-ins run there in tests/faults
def test_it_runs_on_ray_and_its_parameters_are_recorded(call, place):
    ran = call("run", *JOB, "--output", "out", "--workers", "1", "--json")
    assert json.loads(ran.stdout)["done"] == 2, ran.stderr
    files = (place / "out/results").glob("*.parquet")
    rows = {row["row_id"]: row for file in files for row in pq.read_table(file).to_pylist()}
    assert json.loads(rows["job"]["parameters"]) == {"glow": 0.5}
    assert json.loads(rows["own"]["parameters"]) == {"glow": 0.9}
    assert rows["job"]["sha256"] != rows["own"]["sha256"]
    assert {rows[name]["method"] for name in ("job", "own")} == {"glow"}
    assert rows["bad"]["error_type"] == "InvalidRow"
    assert "glow: 7.0 is outside 0..1" in rows["bad"]["error_message"]
