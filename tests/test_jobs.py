"""Job files: each is one that its command takes, and can be planned on a stand-in for its data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from pnp_batch import cli
from pnp_batch.config import with_values
from pnp_batch.errors import InvalidConfig
from pnp_batch.given import METHODS, build, read_file
from pnp_batch.plan import plan
from pnp_batch.variants import listed, variants
from tests import tiny

FOLDER = Path(__file__).parents[1] / "jobs"
FILES = sorted(FOLDER.glob("*.yaml"))
STAND_IN = [
    {"row_id": n, "image": f"{n}.png", "prompt": f"a {n} at night", "source_prompt": f"a {n}"}
    for n in ("cat", "dog")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_job_file_is_planned_on_a_stand_in(path, model, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in STAND_IN))
    file = read_file(path.read_text(), path.name, also=[METHODS])
    asked = listed(file.pop(METHODS, ""))
    config = build({}, file, {})
    stand_in = {"manifest": str(manifest), "output": str(tmp_path / "out"), "cache": None}
    config = with_values(config, **stand_in, model=model, device="cpu", dtype="float32")
    for variant in variants(asked or config.method, config):
        found = plan(variant.job(config))
        assert (found.rows, found.todo, found.images) == (2, 2, 2)
        assert sum(found.unet_evaluations.values()) > 0


def commands(path):
    """The commands that a job file's comments show."""
    text = re.sub(r"\\\n#\s*", "", path.read_text())
    return [shlex.split(line) for line in re.findall(r"(?m)^#  +pnp-batch (.*)$", text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_in_a_job_files_comments_are_ones(path):
    shown = commands(path)
    assert shown or path.stem == "sample"
    for words in shown:
        command: click.Command = cli.cli
        while isinstance(command, click.Group):
            name = words.pop(0)
            found = command.get_command(click.Context(command), name)
            assert found, name
            command = found
        with command.make_context(command.name, words) as context:
            named = context.params.get("config_file")
        assert named in (None, f"jobs/{path.name}")


def test_what_one_command_knows_another_names(tmp_path):
    text = "methods: [pnp, 'sdedit:strength=0.5']\n"
    assert listed(read_file(text, "j.yaml", also=[METHODS])[METHODS]) == "pnp,sdedit:strength=0.5"
    with pytest.raises(InvalidConfig, match="'methods' is of another command") as refused:
        read_file(text, "j.yaml")
    assert refused.value.hint == "pnp-batch compare --config j.yaml"
    for wrong in ({"pnp": 1}, 3, [["pnp"]]):
        with pytest.raises(InvalidConfig, match="methods: expected a text"):
            listed(wrong)
