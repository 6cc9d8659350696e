"""The bench: what it prints follows from work that was really done."""

from __future__ import annotations

import json

import pytest

from pnp_batch import cli
from pnp_batch.config import RunConfig
from pnp_batch.plan import plan
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1"))


def told(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out


def test_rates_belong_to_the_work_that_the_plan_counts(model, tmp_path, capsys):
    flags = ["--model", model, "--steps", "2", "--batch-size", "4", "--prompts", "2"]
    found = json.loads(told(capsys, *flags, "--repeats", "2", "--json"))
    assert (found["images"], found["prompts"], found["repeats"]) == (2, 2, 2)
    rows = [{"row_id": f"r{n}", "image": f"{n}.png", "prompt": ["x", "y"]} for n in range(2)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = RunConfig(str(path), str(tmp_path / "out"), model=model, steps=2, device="cpu")
    expected = plan(job)
    assert found["tflop_per_image"] == pytest.approx(expected.tflop / 4)
    assert found["published_tflop_per_image"] == pytest.approx(expected.published_tflop / 4)
    assert found["latent_bytes_per_image"] * 2 == expected.latent_bytes
    # Four pictures take two inversions and four generations; the FLOPs are spent in that time.
    seconds = 2 / found["inversions_per_second"] + 4 / found["generations_per_second"]
    assert found["images_per_second"] == pytest.approx(4 / seconds)
    assert found["tflops"] == pytest.approx(expected.tflop / seconds)
    assert found["utilisation"] == pytest.approx(found["tflops"] / found["ceiling_tflops"])
    assert found["run"] is None


@pytest.mark.ray
@pytest.mark.long
def test_a_whole_run_is_measured_in_a_process_of_its_own(model, capsys):
    flags = ["--model", model, "--steps", "1", "--batch-size", "4", "--repeats", "1"]
    found = json.loads(told(capsys, *flags, "--run", "24", "--json"))["run"]
    assert (found["rows"], found["workers"]) == (24, 1)
    assert 0 < found["busy"] <= 1
    assert found["images_per_second"] * found["seconds"] == pytest.approx(
        round(found["images_per_second"] * found["seconds"])
    )
    assert found["share_of_engine"] > 0
    if found["driver_mib"] is not None:  # where the system tells it
        assert 50 < found["driver_mib"] < 2000
        assert found["worker_mib"] > 200


@pytest.mark.ray
@pytest.mark.long
def test_the_pipeline_is_measured_without_a_model(model, capsys):
    flags = ["--model", model, "--method", "copy", "--repeats", "1", "--prompts", "20"]
    said = told(capsys, *flags, "--run", "600")
    assert "work of an image: 0 TFLOP" in said
    assert "a run of 600 rows on 1 workers: " in said
    assert "workers busy 0%" in said


def test_what_cannot_be_measured_is_refused(model, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--model", model, "--method", "pmp"])
    assert ended.value.code == 4
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert "method 'pmp' is unknown" in error
    assert hint.startswith("hint: ")
