"""Plans: what decides the numbers, beyond the plain job that tests/test_look.py holds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pnp_batch import cli, rates, record
from pnp_batch import plan as planning
from pnp_batch.config import RunConfig, with_values
from pnp_batch.errors import InvalidConfig
from pnp_batch.flops import unet_flops, vae_flops
from pnp_batch.job import prepare
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.plan import Prices, plan
from pnp_batch.storage import Storage
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1"))


@pytest.fixture
def job(tmp_path, model):
    """`job(rows, **config)`: a job of four steps over rows that need no picture to be planned."""

    def job(rows, **config):
        path = tmp_path / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"model": model, "steps": 4, "device": "cpu", "dtype": "float32"}
        return RunConfig(str(path), str(tmp_path / "out"), **{**values, **config})

    return job


def rows(count):
    return [{"row_id": f"r{n}", "image": f"{n}.png", "prompt": "x"} for n in range(count)]


def test_without_injection_there_is_no_guidance_branch(job):
    spent = plan(job(rows(2), pnp_f_t=0.0, pnp_attn_t=0.0)).unet_evaluations
    assert spent["guidance"] == 0
    assert (spent["inversion"], spent["translated"]) == (8, 16)


def test_each_batch_of_an_image_has_a_guidance_branch(job):
    many = [{"row_id": "r", "image": "a.png", "prompt": list("abcde")}]
    one = plan(job(many, batch_size=5)).unet_evaluations
    three = plan(job(many, batch_size=2)).unet_evaluations
    assert (one["guidance"], three["guidance"]) == (3, 9)
    assert one["inversion"] == three["inversion"] == 4


def test_a_generated_guidance_image_is_sampled_and_not_inverted(job):
    generated = [{"row_id": "r", "image": None, "prompt": "x", "source_prompt": "y"}]
    found = plan(job(generated))
    assert (found.images, found.inversions_missing, found.latent_bytes) == (1, 0, 0)
    assert found.unet_evaluations["generated_guidance"] == 8


def test_copying_evaluates_nothing(job):
    found = plan(job(rows(3), method="copy"))
    assert sum(found.unet_evaluations.values()) == found.tflop == 0
    assert found.image_bytes > 0


def test_sdedit_encodes_and_samples_its_share_of_the_steps_and_inverts_nothing(job):
    row = {"image": "a.png", "prompt": "x", "method": "sdedit"}
    many = [{**row, "row_id": "half", "strength": 0.5}, {**row, "row_id": "job"}]
    config = job(many)
    found = plan(config)
    assert (found.images, found.inversions_missing, found.latent_bytes) == (1, 0, 0)
    assert +Counter(found.unet_evaluations) == {"translated": 2 * 2 + 2 * 3}
    configs = prepare(config).model.configs
    encode, decode = vae_flops(configs["vae"], 32)
    evaluation = unet_flops(configs["unet"], tiny.SIDE, tiny.TOKENS).full
    assert found.tflop * 1e12 == pytest.approx(10 * evaluation + encode + 2 * decode)


def test_bad_rows_cost_nothing(job):
    bad = [*rows(2), {"row_id": "bad", "image": "0.png", "prompt": ""}]
    found = plan(job(bad))
    assert (found.rows, found.todo) == (3, 3)
    assert found.unet_evaluations == plan(job(rows(2))).unet_evaluations


def test_latents_are_kept_in_half_precision_where_the_model_computes_in_it(job):
    whole, half = plan(job(rows(1))), plan(job(rows(1), dtype="bfloat16"))
    assert whole.latent_bytes == 4 * 4 * tiny.SIDE**2 * 4
    assert half.latent_bytes == whole.latent_bytes // 2
    assert plan(job(rows(1), cache="none")).latent_bytes == 0


def test_of_many_images_a_sample_is_looked_for_in_the_cache(job, tmp_path, monkeypatch):
    asked, checked = job(rows(30)), prepare(job(rows(30)))
    side, cache = int(checked.settings["resolution"]), LatentCache(Storage(asked.cache_uri))
    inversion = Inversion.of(asked.sampling, checked.model.digest, side, "float32")
    for number in range(30):
        picture = Image.new("RGB", (side, side), (number, 0, 0))
        picture.save(tmp_path / f"{number}.png")
        if number % 3 == 0:
            cache.put(inversion.key(picture.tobytes(), ""), np.zeros(1))
    assert plan(asked).inversions_cached == 10
    monkeypatch.setattr(planning, "SAMPLED", 7)
    found = plan(asked)
    assert found.inversions_cached in range(0, 31, 5)
    assert found.inversions_cached + found.inversions_missing == 30


def test_the_rate_is_that_of_the_latest_run_of_the_output(job):
    config = job(rows(6))
    assert plan(config).tflops_from == "assumed"
    before = prepare(config)
    record.write(
        before.output,
        record.Record(
            config.as_dict(),
            before.settings,
            6,
            counts={"worker_seconds": 40.0, "tflop": 20.0},
            workers=2,
            accelerator="Fast Card",
        ),
    )
    found = plan(config)
    assert (found.tflops_from, found.workers) == ("measured", 2)
    assert "Fast Card" in found.tflops_of
    assert found.worker_hours == pytest.approx(found.tflop / 0.5 / 3600)
    assert found.hours == pytest.approx(found.worker_hours / 2)
    assert plan(config, tflops=2.0).tflops_from == "given"
    four = with_values(config, workers=4)
    assert plan(four).hours == pytest.approx(found.hours / 2)
    assert plan(four).worker_hours == pytest.approx(found.worker_hours)
    elsewhere = job(rows(6), steps=2)
    named = plan(with_values(elsewhere, output=config.output + "-2"), like=config.output)
    assert (named.tflops_from, named.tflops) == ("measured", 1.0)


def test_where_nothing_was_measured_another_run_of_this_machine_tells_the_rate(job):
    config = job(rows(2))
    before = prepare(config)
    settings = {**before.settings, "device": "cpu", "dtype": "float32"}
    counts = {"worker_seconds": 10.0, "tflop": 3.0}
    there = record.Record(config.as_dict(), settings, 2, counts=counts, accelerator="A Chip")
    rates.keep(there)
    found = plan(config)
    assert (found.tflops_from, found.tflops, found.workers) == ("kept", 0.3, 1)
    assert plan(job(rows(2), dtype="float16")).tflops_from == "assumed"
    rates.keep(replace(there, counts={**counts, "tflop": 6.0}))  # the latest counts
    assert plan(config).tflops == 0.6


def test_a_rate_is_taken_only_from_a_run_that_has_one(job):
    config = job(rows(1))
    before = prepare(config)
    record.write(before.output, record.Record(config.as_dict(), before.settings, 1))
    with pytest.raises(InvalidConfig, match="has measured no rate"):
        plan(config, like=config.output)


def test_prices_are_of_all_workers_or_of_each(job):
    config = job(rows(3), workers=4)
    found = plan(config, tflops=1.0, prices=Prices(together=8.0))
    each = plan(config, tflops=1.0, prices=Prices(worker=2.0))
    assert found.price == each.price == pytest.approx(8 * found.hours)
    assert plan(config).price is None


def test_a_job_file_names_the_output_too(job, tmp_path, capsys):
    config = job(rows(1))
    before = prepare(config)
    foreign = {**before.settings, "steps": 9}
    record.write(before.output, record.Record(config.as_dict(), foreign, 1))
    file = tmp_path / "job.yaml"
    names = {"manifest": config.manifest, "output": config.output, "model": config.model}
    file.write_text(json.dumps(names))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--config", str(file), "--steps", "4"])
    assert ended.value.code == 4
    assert "steps: 9 there, 4 now" in capsys.readouterr().err


def test_a_plan_without_an_output_writes_nothing(job, tmp_path, monkeypatch, capsys):
    config = job(rows(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", config.manifest, "--model", config.model, "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["todo"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_extra_columns_may_be_named_as_a_run_names_its_own(job):
    named = {"number": 1, "guidance": "x", "images": 2, "share": 3, "slot": 4, "pixels": 5}
    assert plan(job([{**row, **named} for row in rows(2)])).todo == 2
