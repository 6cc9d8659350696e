"""`run`, `retry` and `demo` as commands, and what a signal does to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pnp_batch import cli
from tests.pipeline.conftest import Jobs, rows_of

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str) -> int:
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def test_run_prints_one_json_object_and_its_progress_elsewhere(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.picture("a.png", 1)
    manifest = jobs.manifest(
        [{"row_id": name, "image": f"{name}.png", "prompt": "x"} for name in "ab"]
    )
    output = str(jobs.folder / "out")
    flags = ["--output", output, "--model", str(jobs.model), "--method", "copy", "--workers", "1"]
    assert call("run", manifest, *flags, "--json") == 0
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert (body["rows"], body["done"], body["failed"], body["exit_code"]) == (2, 1, 1, 0)
    assert body["errors"][0]["error_type"] == "ImageNotFound"
    assert body["errors"][0]["row_id"] == "b"
    assert "done: 2/2 rows" in captured.err

    jobs.picture("b.png", 2)
    assert call("retry", output) == 0
    captured = capsys.readouterr()
    assert "2 rows done, 0 failed" in captured.out
    assert "next: pnp-batch status" in captured.out
    assert {row["status"] for row in rows_of(output).values()} == {"ok"}


def test_more_failures_than_allowed_exit_with_3_and_say_what_next(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}])
    flags = ["--output", str(jobs.folder / "out"), "--model", str(jobs.model), "--method", "copy"]
    assert call("run", manifest, *flags, "--max-failed", "0.5") == 3
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert error == "error: 1 of 1 rows failed, more than --max-failed 0.5"
    assert hint.startswith("hint: mend them, then: pnp-batch retry ")


def test_a_job_file_gives_options_and_flags_beat_it(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.picture("a.png", 1)
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}])
    job = jobs.folder / "job.yaml"
    job.write_text(
        f"manifest: {manifest}\noutput: {jobs.folder}/out\nmodel: {jobs.model}\n"
        "method: copy\nimage_format: webp\nseed: 5\n"
    )
    assert call("run", "--config", str(job), "--seed", "6", "--json") == 0
    (row,) = rows_of(f"{jobs.folder}/out").values()
    assert row["output"].endswith(".webp")
    record = json.loads((jobs.folder / "out" / "run.json").read_text())
    assert (record["config"]["seed"], record["config"]["method"]) == (6, "copy")

    job.write_text(job.read_text() + "guidence_scale: 3\n")
    capsys.readouterr()
    assert call("run", "--config", str(job)) == 4
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert "unknown key 'guidence_scale'" in error
    assert hint == "hint: did you mean 'guidance_scale'?"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run"], 2, "a MANIFEST is missing"),
        (["run", "m.parquet", "--steps", "many"], 2, "'many' is not a valid"),
        (["run", "m.parquet", "--output", "out", "--pnp-f-t", "1.5"], 2, "1.5 is not in the range"),
        (["run", "m.parquet", "--output", "out"], 4, "m.parquet: no such file"),
        (["run", "m.parquet", "--output", "o", "--steps", "4", "--inversion-steps", "6"], 4, "6"),
        (["run", "m.parquet", "--output", "o", "--method", "pnpp"], 4, "method 'pnpp' is unknown"),
        (["runn"], 2, "no command 'runn'; did you mean 'run'?"),
        (["retry", "nowhere"], 4, "nowhere holds no run.json"),
    ],
)
def test_wrong_calls_end_in_two_lines_and_the_right_code(
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == code
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert told in error
    assert hint.startswith("hint: ")
    assert not list(tmp_path.iterdir())


def test_demo_translates_its_pictures_and_draws_them(
    tmp_path: Path, shared_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert call("demo", "--output", str(output)) == 0
    rows = rows_of(str(output))
    assert len(rows) == 16
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len(list((output / "latents").rglob("*.safetensors"))) == 8
    for row in rows.values():
        assert row["structure_distance"] > 0
        assert isinstance(row["clip_direction"], float)
        assert isinstance(row["world_rendition"], float)
    told = capsys.readouterr().out
    assert "pnp (16 rows)" in told
    assert "contact-sheet.png" in told
    assert "report/index.html" in told
    assert len(list((output / "report/thumbs").rglob("*.webp"))) == 8 + 16
    with Image.open(output / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.getcolors(1 << 24) or []) > 1000
