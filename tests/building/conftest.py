"""Builders through the command line: each product must be what `validate` passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pnp_batch import cli, manifest


@dataclass
class Shell:
    """Runs `pnp-batch manifest` and `pnp-batch validate`."""

    captured: pytest.CaptureFixture[str]
    folder: Path
    answer: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """What a command says: its standard output, or the two lines of its error."""
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        said = self.captured.readouterr()
        assert (ended.value.code or 0) == code, said.err
        if not code:
            return said.out
        assert len(said.err.splitlines()) == 2, said.err
        return said.err

    def build(self, *arguments: str | Path, output: str | Path = "m.parquet") -> list[dict]:
        """Builds a manifest, passes it through `validate`, and reads it."""
        path = self.folder / output
        said = self.run("manifest", *arguments, "--output", path, "--json")
        self.answer = json.loads(said)
        return self.read(path, self.answer["allow_root"])

    def read(self, path: str | Path, roots: list[str]) -> list[dict]:
        """The rows of a manifest that a run would not refuse and has no bad rows."""
        allowed = [text for root in roots for text in ("--allow-root", root)]
        said = self.run("validate", path, *allowed, "--images", "--json")
        assert json.loads(said)["bad"] == []
        return manifest.read(str(path)).table.to_pylist()

    def refused(self, *arguments: str | Path, code: int = 4) -> str:
        """The error of a builder, which leaves nothing behind."""
        said = self.run("manifest", *arguments, "--output", self.folder / "no.parquet", code=code)
        assert not [p for p in self.folder.rglob("*") if p.name.startswith((".tmp", "no.parquet"))]
        return said


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    return Shell(capsys, tmp_path)


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Saves small pictures, all different, under these names below a folder."""

    def drawn(folder: str, *names: str) -> Path:
        for shade, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 90, 40)).save(path)
        return tmp_path / folder

    return drawn
