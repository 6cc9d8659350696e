"""The commands that only look: what they say of a job, and that it is so."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from PIL import Image

from pnp_batch import cli, clock, methods, record, results
from pnp_batch.config import RunConfig
from pnp_batch.engine import Engine
from pnp_batch.latents import LatentCache
from pnp_batch.methods.described import in_words
from pnp_batch.models import StableDiffusion, find
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage
from pnp_batch.translator import Translator
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1")


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Runs a command with --json; its answer, or the error's two lines."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert (ended.value.code or 0) == code, captured.err
    if code == 4:
        error, hint = captured.err.strip().splitlines()
        return {"error": error, "hint": hint}
    answer: dict[str, Any] = json.loads(captured.out)
    return answer


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Six rows of two pictures, one that is missing, one that is none, and one bad prompt."""
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (32, 32), (shade, 90, 40)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        {"row_id": "a", "image": "a.png", "prompt": ["x", "y", "z"]},
        {"row_id": "b", "image": "b.png", "prompt": "x"},
        {"row_id": "gone", "image": "gone.png", "prompt": "x"},
        {"row_id": "broken", "image": "broken.png", "prompt": "x"},
        {"row_id": "mute", "image": "a.png", "prompt": " "},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_validate_says_what_a_run_would_say(
    manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, "validate", manifest)
    assert (found["rows"], found["images"], found["bad_rows"]) == (7, 4, 1)
    opened = told(capsys, "validate", manifest, "--images")
    kinds = {failure["error_type"]: failure["row_id"] for failure in opened["bad"]}
    assert kinds == {"InvalidRow": "mute", "ImageNotFound": "gone", "ImageUndecodable": "broken"}
    refused = told(capsys, "validate", manifest + ".gone", code=4)
    assert "m.jsonl.gone" in refused["error"]


def test_plan_counts_what_the_engine_evaluates(
    manifest: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(model), "--steps", "5", "--limit", "4", "--inversion-steps", "10"]
    plan = told(capsys, "plan", manifest, *flags)
    assert (plan["rows"], plan["images"], plan["inversions_missing"]) == (4, 2, 2)
    pictures = [Image.open(tmp_path / name) for name in ("a.png", "b.png")]
    translator = Translator.load(str(model))
    counted: list[int] = []
    translator.model.unet.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    translator.translate(pictures, [["x", "y", "z"], "x"], steps=5, inversion_steps=10)
    assert sum(counted) == sum(plan["unet_evaluations"].values())
    assert plan["tflop"] < plan["published_tflop"]


def test_plan_finds_cached_inversions_and_rows_that_are_done(
    manifest: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(model), "--steps", "5", "--device", "cpu"]
    output = tmp_path / "out"
    before = told(capsys, "plan", manifest, *flags, "--output", str(output))
    assert (before["inversions_missing"], before["inversions_cached"]) == (4, 0)
    loaded = StableDiffusion(find(str(model)))
    engine = Engine(loaded, sampling=Sampling(5), resolution=32)
    pixels = Image.open(tmp_path / "a.png").tobytes()
    cache = LatentCache(Storage(f"{output}/latents"))
    key = engine.origins.inversion.key(pixels, "")
    cache.put(key, loaded.encode(Image.open(tmp_path / "a.png")).numpy())
    after = told(capsys, "plan", manifest, *flags, "--output", str(output))
    assert (after["inversions_missing"], after["inversions_cached"]) == (3, 1)
    assert after["tflop"] < before["tflop"]
    priced = told(capsys, "plan", manifest, *flags, "--tflops", "0.5", "--price-per-hour", "3")
    assert priced["price"] == pytest.approx(3 * priced["hours"])
    assert priced["hours"] == pytest.approx(priced["tflop"] / 0.5 / 3600)


def test_status_reads_an_output_while_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run.json" in told(capsys, "status", str(tmp_path / "none"), code=4)["error"]
    output = Storage(str(tmp_path / "out"))
    config = RunConfig("m", output.uri).as_dict()
    now = clock.now()
    there = record.Record(config, {"steps": 1}, rows=5, started_at=now, updated_at=now)
    record.write(output, there)
    for row_id, status in (("a", "ok"), ("b", "error")):
        values = {"row_id": row_id, "status": status, "error_type": None, "error_message": None}
        values |= {"error_type": "InvalidRow", "error_message": "m"} if status == "error" else {}
        results.write(output, pa.Table.from_pylist([values], results.SCHEMA))
    found = told(capsys, "status", output.uri)
    assert (found["state"], found["rows"], found["missing"]) == ("running", 5, 3)
    assert (found["done"], found["failed"]) == (1, 1)
    assert found["failures"][0]["row_id"] == "b"
    late = record.Record(
        config, {"steps": 1}, rows=5, started_at=now, updated_at="2026-01-01T00:00:00+00:00"
    )
    record.write(output, late)
    stalled = told(capsys, "status", output.uri)
    assert stalled["state"] == "stalled"
    assert stalled["command"].endswith(f" --output {output.uri}")


def test_status_measures_the_latest_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Storage(str(tmp_path / "out"))
    began = datetime(2026, 1, 1, tzinfo=UTC)
    config, started = RunConfig("m", output.uri).as_dict(), began.isoformat()
    there = record.Record(config, {}, rows=9, started_at=started, updated_at=clock.now())
    record.write(output, there)
    assert told(capsys, "status", output.uri)["rate"] is None
    seconds = {"before": -5.0, "first": 0.0, "second": 0.5, "last": 2.0}
    rows = [
        {"row_id": row_id, "status": "ok", "recorded_at": began + timedelta(seconds=after)}
        for row_id, after in seconds.items()
    ]
    rows.append({"row_id": "sometime", "status": "ok"})
    results.write(output, pa.Table.from_pylist(rows, results.SCHEMA))
    found = told(capsys, "status", output.uri)
    assert (found["done"], found["rate"]) == (5, 1.5)
    assert found["eta_seconds"] == pytest.approx(4 / 1.5)


def test_methods_lists_every_method_with_its_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = {m["name"]: m for m in told(capsys, "methods")["methods"]}
    assert list(listed) == methods.names()
    assert {"copy", "pnp", "reconstruct", "sdedit"} <= set(listed)
    pnp = listed["pnp"]
    assert pnp["parameters"]["pnp_f_t"] == 0.8
    assert pnp["cost_at_50_steps"]["guidance_to_attention"] == 25
    assert "2211.12572" in pnp["paper"]
    share = pnp["options"]["pnp_f_t"]
    assert (share["type"], share["low"], share["high"]) == ("float", 0.0, 1.0)
    assert "feature injection" in share["help"]
    assert (pnp["needs"], pnp["wants"]) == (["UNet", "VAE"], [])
    assert listed["p2p"]["wants"] == ["source_prompt"]
    assert "CLIP" in listed["flexit"]["needs"]
    assert listed["copy"]["needs"] == listed["sdedit"]["inversions"] == []
    for one in listed.values():
        assert set(one["options"]) == set(one["parameters"])


def test_methods_for_people_explain_each_parameter_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["methods", "sdedit", "pnp"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sdedit: SDEdit")
    assert "  --guidance-scale 7.5  --negative-prompt ''  --strength 0.75" in lines
    words = " ".join(" ".join(lines).split())
    assert "for each image 50 evaluations to invert it, 25 of its branch as far" in words
    assert "for each row 100 evaluations" in words
    assert sum("classifier-free guidance" in line for line in lines) == 1
    assert not any(line.startswith("copy") for line in lines)
    assert max(map(len, lines)) <= 100
    assert "did you mean 'pnp'?" in told(capsys, "methods", "pn", code=4)["hint"]


def test_costs_in_words_tell_passes_backwards() -> None:
    guided = methods.Cost(guidance_whole=50, guidance_gradients=40, translated=9, gradients=7)
    assert in_words(guided) == (
        "for each image 50 of its branch, 40 of these with a pass backwards; "
        "for each row 9 evaluations, 7 of these with a pass backwards"
    )
    optimised = in_words(methods.Cost(decodes=160))
    assert optimised == "for each row 160 decodes with a pass backwards through CLIP"
    tuned = in_words(methods.Cost(translated=9, trained=80, trained_gradients=6))
    assert tuned.endswith("text 80 evaluations, 6 of these with a pass backwards")
    assert in_words(methods.Cost()) == "no UNet evaluations"


def test_doctor_tries_model_and_storage(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, "doctor", str(tmp_path / "store"), "--model", str(model))
    assert found["ok"]
    assert {"versions", "devices", "model", "storage"} <= {c["name"] for c in found["checks"]}
    assert not list((tmp_path / "store").iterdir())
    weights = model.parent / "cut"
    weights.mkdir()
    (weights / "model_index.json").write_text("{}")
    broken = told(capsys, "doctor", "--model", str(weights), code=1)
    assert not broken["ok"]


@pytest.mark.parametrize("command", [["--help"], ["validate"], ["plan"], ["status"]])
def test_looking_imports_neither_torch_nor_ray(
    command: list[str], manifest: str, model: Path, tmp_path: Path
) -> None:
    arguments = {
        "validate": ["validate", manifest, "--images"],
        "plan": ["plan", manifest, "--model", str(model)],
        "status": ["status", str(tmp_path)],
    }.get(command[0], command)
    script = (
        "import sys; from pnp_batch import cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
