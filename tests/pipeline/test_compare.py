"""`compare`: several methods over one manifest, what they leave, and what a failing one takes."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pnp_batch import record
from pnp_batch.compare import compare
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.pipeline import Interrupted
from pnp_batch.storage import Storage
from pnp_batch.variants import variants
from tests.pipeline.conftest import Jobs, rows_of
from tests.pipeline.test_commands import call

if TYPE_CHECKING:
    from pathlib import Path

    from pnp_batch.pipeline import Progress

pytestmark = pytest.mark.ray

# The embedded model, as it comes with networks to score with.
FLAGS = ("--steps", "2", "--workers", "1", "--device", "cpu")


def manifest_of(jobs: Jobs, names: str, missing: str = "", **more: Any) -> str:
    for seed, name in enumerate(names):
        if name not in missing:
            jobs.picture(f"{name}.png", seed)
    rows = [{"row_id": n, "image": f"{n}.png", "prompt": f"a {n}", **more} for n in names]
    return jobs.manifest(rows)


def test_each_variant_is_an_output_and_all_are_told_of_together(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = manifest_of(jobs, "ab"), jobs.folder / "out"
    asked = "copy,pnp:pnp_f_t=0.5"
    command = ("compare", manifest, "--output", str(output), *FLAGS, "--methods", asked)
    assert call(*command, "--json") == 0
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert "pnp:pnp_f_t=0.5 (2 of 2) " in captured.err
    assert "scores of pnp:pnp_f_t=0.5 (2 of 2) " in captured.err
    assert [one["name"] for one in body["variants"]] == asked.split(",")
    copied, made = body["variants"]
    assert made["output"] == str(output / "pnp-pnp_f_t-0.5")
    assert {row["pnp_f_t"] for row in rows_of(made["output"]).values()} == {0.5}
    assert made["parameters"]["pnp_f_t"] == 0.5
    assert (made["rows"], made["done"], made["exit_code"]) == (2, 2, 0)
    assert made["scores"]["structure_distance"]["mean"] > 0
    assert copied["scores"]["structure_distance"]["mean"] == pytest.approx(0, abs=1e-9)
    apart = body["differences"][made["name"]]  # of the copies, which have no distance at all
    assert apart["structure_distance"] == pytest.approx(made["scores"]["structure_distance"])
    assert (made["unet_evaluations"], copied["unet_evaluations"]) == (2 + 1 + 4, 0)
    assert len(list((output / "latents").rglob("*.safetensors"))) == 2
    assert not (output / "pnp-pnp_f_t-0.5" / "latents").exists()
    assert json.loads((output / "comparison.json").read_text()) == body
    table = (output / "comparison.md").read_text().splitlines()
    assert [line.split(" |")[0] for line in table[2:4]] == ["| `copy`", "| `pnp:pnp_f_t=0.5`"]
    assert (output / "comparison.svg").read_text().count("<circle") == 2
    with Image.open(output / "comparison.png") as sheet:
        assert sheet.width == 3 * 204 + 12
    assert "copy · pnp:pnp_f_t=0.5" in (output / "report/index.html").read_text()
    assert call("status", made["output"]) == 0

    before = {path: path.stat().st_mtime_ns for path in output.glob("*/run.json")}
    capsys.readouterr()
    assert call(*command[:-1], f"{asked},copy:seed=1") == 0
    captured = capsys.readouterr()
    assert "copy:seed=1 (3 of 3) done: 2/2 rows" in captured.err
    assert "(1 of 3)" not in captured.err  # nothing of the others was done again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert captured.out.splitlines()[0].split() == [
        *("method", "structure", "distance", "↓", "edge", "correlation", "↑", "CLIP", "↑"),
        *("UNet", "evaluations", "s"),
    ]
    assert captured.out.count("look at ") == 5


def test_a_variant_that_fails_loses_only_itself(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    output = jobs.folder / "out"
    other = manifest_of(jobs, "x")
    config = RunConfig(other, str(output / "copy"), method="copy", steps=2, device="cpu")
    jobs.run(other, config.output, **{n: getattr(config, n) for n in ("model", "method", "steps")})
    manifest = manifest_of(jobs, "abc", missing="c")
    methods = ("--methods", "copy,copy:seed=1", "--max-failed", "0.2", "--json")
    assert call("compare", manifest, "--output", str(output), *FLAGS, *methods) == 4
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert [one["exit_code"] for one in body["variants"]] == [4, 3]
    assert body["exit_code"] == 4
    assert "rows" not in body["variants"][0]  # which are others' rows
    assert body["variants"][1]["error"] == "1 of 3 rows failed"
    assert body["variants"][1]["scores"]["clip_similarity"]["mean"]
    error, hint = captured.err.strip().splitlines()[-2:]
    assert error.startswith("error: 2 of 2 failed: copy: ")
    assert "holds 1 rows that this manifest does not have: 'x'" in error
    assert "copy:seed=1: 1 of 3 rows failed" in error
    assert hint.startswith("hint: use another --output")
    text = (output / "comparison.md").read_text()
    assert "`copy:seed=1`: 1 of 3 rows failed." in text
    assert "| `copy` |" not in text


def test_an_interrupt_ends_the_comparison_and_what_was_done_stays(jobs: Jobs) -> None:
    manifest, output = manifest_of(jobs, "ab"), str(jobs.folder / "out")
    config = RunConfig(manifest, output, steps=2, workers=1, device="cpu")
    phases = []

    def listener(progress: Progress) -> None:
        phases.append(progress.phase)
        if progress.phase == "reconstruct (2 of 3) loading the model":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as ended:
        compare(config, variants("copy,reconstruct,sdedit", config), listener)
    assert ended.value.exit_code == 130
    assert len(rows_of(f"{config.output}/copy")) == 2
    assert not any(phase.startswith("sdedit") for phase in phases)
    assert not (jobs.folder / "out/comparison.json").exists()


def test_what_cannot_be_compared_is_refused_before_any_work(jobs: Jobs, tmp_path: Path) -> None:
    def refused(manifest: str, methods: str, **more: Any) -> str:
        config = RunConfig(manifest, str(tmp_path / "out"), **{"steps": 2, **more})
        with pytest.raises(InvalidConfig) as error:
            compare(config, variants(methods, config))
        return str(error.value)

    own = manifest_of(jobs, "a", strength=0.5)
    told = refused(own, "copy,sdedit-low")
    assert told == "the manifest's column 'strength' would override what sdedit-low sets"
    assert not (tmp_path / "out").exists()
    named = manifest_of(jobs, "a", method="pnp")
    assert "column 'method'" in refused(named, "copy")
    plain = manifest_of(jobs, "a")
    job = RunConfig(plain, str(tmp_path / "out"))
    record.write(Storage(job.output), record.Record(job.as_dict(), {}, 1))
    assert "is the output of a run" in refused(plain, "copy")
