"""infra/image/: pinned, without root, without secrets, made of files that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import pytest

from tests.infra.places import INFRA, PINS, ROOT

DOCKERFILE = INFRA / "image/Dockerfile"


def instructions(text):
    """The Dockerfile's instructions as (name, arguments), continued lines joined."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", code)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


STEPS = instructions(DOCKERFILE.read_text())


def steps(name):
    return [arguments for step, arguments in STEPS if step == name]


def test_hadolint_finds_nothing():
    beside = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=beside)
    assert hadolint, "make venv installs it"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stage_begins_with_the_same_pinned_base():
    stages = [arguments.partition(" ")[0] for arguments in steps("FROM")]
    assert stages == ["python:${PYTHON}${PYTHON_DIGEST}"] * 3
    (tag,) = [a.partition("=")[2] for a in steps("ARG") if a.startswith("PYTHON=")]
    assert re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", tag)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    least = re.fullmatch(r">=3\.(\d+)", needed)
    assert int(tag.split(".")[1]) >= int(least[1])


def test_it_ends_as_a_user_that_is_not_root():
    last = [(step, arguments) for step, arguments in STEPS if step in ("FROM", "USER")][-1]
    assert last == ("USER", "1000:1000")
    assert "HOME=/home/ray" in " ".join(steps("ENV"))


def test_every_install_is_pinned():
    installs = [r for run in steps("RUN") for r in re.split(r"&&", run) if "pip install" in r]
    assert len(installs) == 4
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-deps --no-index" in install


@pytest.mark.parametrize("extras", ["", "gcs,azure"])
def test_every_dependency_has_its_pin(extras, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    script = INFRA / "image/requirements.py"
    done = subprocess.run(
        [sys.executable, script, extras], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.split("\n")[:-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [d for e in filter(None, extras.split(",")) for d in optional[e]]
    assert lines == project["dependencies"] + wanted
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in PINS}
    names = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in lines}
    assert names <= pinned


def test_what_it_copies_exists_and_is_let_through():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = set()
    for arguments in steps("COPY"):
        if not arguments.startswith("--from"):
            copied |= set(arguments.split()[:-1])
    assert "*" in ignored
    assert copied == admitted
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_no_secret_goes_in():
    named = " ".join([*steps("ARG"), *steps("ENV")])
    assert not re.search(r"(?i)token|secret|password|_key|credential", named)
