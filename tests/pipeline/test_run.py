"""The main job, from a manifest to images, results and latent cache."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch import Translator, pipeline, provenance, results
from pnp_batch.config import with_values
from pnp_batch.errors import InvalidManifest, InvalidModel, OutputMismatch
from pnp_batch.provenance import EDITED, GENERATED, TOLD
from pnp_batch.storage import Storage
from tests.pipeline.conftest import Jobs, pixels, recorded, rows_of


def test_every_row_is_recorded_once_with_its_image_or_its_error(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    jobs.picture("b.png", 2, size=(50, 40))
    manifest = jobs.manifest(
        [
            {"row_id": "one", "image": "a.png", "prompt": "a cat", "number": 5, "n": 7},
            {"row_id": "many", "image": "b.png", "prompt": ["a dog", "a tree", ""], "n": 8},
            {"row_id": "gone", "image": "nope.png", "prompt": "x"},
            {"row_id": "drawn", "image": None, "source_prompt": "a car", "prompt": ["a", "b"]},
            {"row_id": "../../up", "image": "a.png", "prompt": "x", "pnp_f_t": 0.2},
            {"row_id": "outside", "image": "/etc/hostname", "prompt": "x"},
            {"row_id": "beyond", "image": "a.png", "prompt": "x", "pnp_attn_t": 1.5},
        ]
    )
    result = jobs.run(manifest)
    output = result.output
    rows = rows_of(output)

    assert result.exit_code == 0
    assert (result.total, result.summary.done, result.summary.failed) == (10, 6, 4)
    errors = {row_id: row["error_type"] for row_id, row in rows.items() if row["error_type"]}
    assert errors == {
        "many-2": "InvalidRow",
        "gone": "ImageNotFound",
        "outside": "ImageForbidden",
        "beyond": "InvalidRow",
    }
    assert "--allow-root" in rows["outside"]["error_message"]
    for row_id, row in rows.items():
        assert row["status"] == ("error" if row_id in errors else "ok")
        if row_id in errors:
            assert row["output"] is None
            assert row["sha256"] is None
            continue
        data = Storage(output).read(row["output"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert pixels(output, row).shape == (row["height"], row["width"], 3) == (32, 32, 3)
    assert rows["one"]["output"].endswith("/one.png")
    assert rows["../../up"]["output"].count("/") == 2
    # A column of the manifest may be named like one that the job uses inside.
    assert (rows["one"]["number"], rows["one"]["n"], rows["many-0"]["number"]) == (5, 7, None)
    assert rows["many-1"]["prompt"] == "a tree"
    assert rows["one"]["pnp_f_t"] == 0.8
    assert rows["../../up"]["pnp_f_t"] == 0.2
    assert rows["drawn-0"]["seed"] == rows["drawn-1"]["seed"]
    assert rows["drawn-0"]["latents_key"] is None
    record = json.loads(Storage(output).read("run.json"))
    assert record["state"] == "done"
    assert (record["done"], record["failed"], record["rows"]) == (6, 4, 10)


def test_running_again_does_only_what_is_missing(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    jobs.picture("b.png", 2)
    rows = [{"row_id": name, "image": f"{name}.png", "prompt": "x"} for name in "ab"]
    manifest = jobs.manifest(rows)
    first = jobs.run(manifest, limit=1, method="copy")
    image = jobs.folder / "out" / rows_of(first.output)["a"]["output"]
    before = (image.stat().st_mtime_ns, image.read_bytes())

    second = jobs.run(manifest, method="copy")
    third = jobs.run(manifest, method="copy")

    assert (first.summary.done, second.summary.done, third.summary.done) == (1, 2, 2)
    assert second.progress.session_done == 1
    assert third.progress.session_done == 0
    # As a run leaves it that is killed after its last row, and as the next one ends it.
    record_file = jobs.folder / "out/run.json"
    killed = {**json.loads(record_file.read_text()), "state": "running", "done": 1}
    record_file.write_text(json.dumps(killed))
    jobs.run(manifest, method="copy")
    ended = json.loads(record_file.read_text())
    assert (ended["state"], ended["done"], ended["failed"]) == ("done", 2, 0)
    assert (image.stat().st_mtime_ns, image.read_bytes()) == before
    assert set(rows_of(first.output)) == {"a", "b"}


def test_retry_redoes_the_failed_rows_and_leaves_one_record_each(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    manifest = jobs.manifest(
        [{"row_id": name, "image": f"{name}.png", "prompt": "x"} for name in "abc"]
    )
    config = jobs.config(manifest, method="copy")
    assert pipeline.run(config).summary.failed == 2
    jobs.picture("b.png", 2)
    again = pipeline.run(config, only_failed=True)
    assert (again.summary.done, again.summary.failed) == (2, 1)
    rows = rows_of(again.output)
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok",
        "b": "ok",
        "c": "error",
    }


def test_one_inversion_serves_all_prompts_and_a_second_job_unless_it_is_damaged(
    jobs: Jobs,
) -> None:
    for name in "ab":
        jobs.picture(f"{name}.png", ord(name))
    rows = [{"row_id": n, "image": f"{n}.png", "prompt": ["x", "y", "z"]} for n in "ab"]
    cache = str(jobs.folder / "cache")
    first = jobs.run(jobs.manifest(rows), cache=cache)
    assert first.progress.inverted == 2
    entries = Storage(cache).files()
    assert len(entries) == 2
    keys = {row["latents_key"] for row in rows_of(first.output).values()}
    assert {name.rsplit("/", 1)[1] for name in entries} == {f"{k}.safetensors" for k in keys}

    entry = jobs.folder / "cache" / entries[0]
    sound = entry.read_bytes()
    entry.write_bytes(sound[:-7] + bytes([sound[-7] ^ 1]) + sound[-6:])
    other = [{"row_id": n, "image": f"{n}.png", "prompt": "w"} for n in "ab"]
    second = jobs.run(jobs.manifest(other, "other.jsonl"), str(jobs.folder / "two"), cache=cache)
    told = second.progress
    assert (told.inverted, told.cached, told.damaged) == (1, 1, 1)
    assert entry.read_bytes() == sound

    alone = jobs.run(jobs.manifest(other, "other.jsonl"), str(jobs.folder / "three"), cache="none")
    assert (alone.progress.inverted, alone.progress.cached) == (2, 0)
    assert not list(jobs.folder.rglob("none")) + Storage(alone.output).files("latents")
    pictures = [{n: row["sha256"] for n, row in rows_of(r.output).items()} for r in (second, alone)]
    assert pictures[0] == pictures[1]


def test_copy_writes_the_guidance_image_and_inverts_nothing(jobs: Jobs) -> None:
    image = jobs.picture("a.png", 1)
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}])
    result = jobs.run(manifest, method="copy")
    row = rows_of(result.output)["a"]
    assert (pixels(result.output, row) == np.asarray(image)).all()
    assert row["latents_key"] is None
    assert row["pnp_f_t"] is None
    assert not Storage(result.output).files("latents")


def test_a_method_of_a_row_overrides_that_of_the_job(jobs: Jobs) -> None:
    image = jobs.picture("a.png", 1)
    manifest = jobs.manifest(
        [
            {"row_id": "pnp", "image": "a.png", "prompt": "x", "method": None, "strength": 0.3},
            {"row_id": "copy", "image": "a.png", "prompt": "x", "method": "copy"},
            {"row_id": "back", "image": "a.png", "prompt": "x", "method": "reconstruct"},
        ]
    )
    result = jobs.run(manifest, provenance=False)  # the pictures alone make the digests
    rows = rows_of(result.output)
    assert (pixels(result.output, rows["copy"]) == np.asarray(image)).all()
    assert rows["pnp"]["sha256"] != rows["back"]["sha256"] != rows["copy"]["sha256"]
    shaped = [rows["pnp"][name] for name in ("strength", "pnp_f_t", "inversion_steps")]
    assert shaped == [None, 0.8, 4]  # what its method does not use is not recorded
    assert result.progress.inverted == 1


def test_pictures_are_those_of_the_library_whatever_batches_workers_and_order(jobs: Jobs) -> None:
    pictures = [jobs.picture(f"{n}.png", n, size=(50, 40) if n else (32, 32)) for n in range(5)]
    prompts = [["a cat", "a dog"][: 1 + number % 2] for number in range(5)]
    rows = [
        {"row_id": f"r{number}", "image": f"{number}.png", "prompt": prompts[number]}
        for number in range(5)
    ]
    made = Translator.load(str(jobs.model)).translate(pictures, prompts, steps=4)
    expected = {
        f"r{number}-{k}": np.asarray(image).astype(int)
        for number, images in enumerate(made)
        for k, image in enumerate(images)
    }
    turned = jobs.manifest(rows[::-1], "turned.jsonl")
    for result in (
        jobs.run(jobs.manifest(rows), str(jobs.folder / "single"), batch_size=1),
        jobs.run(turned, str(jobs.folder / "turned"), batch_size=3, workers=2),
    ):
        found = rows_of(result.output)
        assert set(found) == set(expected)
        for row_id, image in expected.items():
            assert np.abs(pixels(result.output, found[row_id]) - image).max() <= 1


def test_parquet_csv_and_json_lines_give_the_same_rows(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    rows = [{"image": "a.png", "prompt": p, "kind": "k", "seed": 3} for p in ("a", "b", "a")]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, jobs.folder / "m.parquet")
    pacsv.write_csv(table, jobs.folder / "m.csv")
    outputs = [
        jobs.run(str(jobs.folder / name), str(jobs.folder / f"out-{name}"), method="copy").output
        for name in ("m.parquet", "m.csv")
    ]
    outputs.append(jobs.run(jobs.manifest(rows), method="copy").output)
    found = [
        sorted((r["row_id"], r["prompt"], r["sha256"]) for r in rows_of(o).values())
        for o in outputs
    ]
    assert found[0] == found[1] == found[2]
    assert len({row_id for row_id, _, _ in found[0]}) == 3


def test_embedded_images_of_hugging_face_layout(jobs: Jobs) -> None:
    image = jobs.picture("a.png", 1)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    data = (jobs.folder / "a.png").read_bytes()
    images = [{"bytes": data, "path": "x/y.png"}, {"bytes": None, "path": "a.png"}]
    table = pa.table({"image": pa.array(images, kind), "prompt": ["x", "y"]})
    pq.write_table(table, jobs.folder / "m.parquet")
    result = jobs.run(str(jobs.folder / "m.parquet"), method="copy")
    rows = list(rows_of(result.output).values())
    assert sorted(row["image"] for row in rows) == ["a.png", "x/y.png"]
    for row in rows:
        assert (pixels(result.output, row) == np.asarray(image)).all()
        assert row["source_sha256"] == hashlib.sha256(data).hexdigest()


def test_an_output_of_another_configuration_is_refused_with_what_differs(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}])
    config = jobs.config(manifest, method="copy")
    pipeline.run(config)
    before = recorded(config.output)
    with pytest.raises(OutputMismatch, match=r"guidance_scale: 7.5 there, 3.0 now.*seed: 0 there"):
        pipeline.run(with_values(config, guidance_scale=3.0, seed=9))
    assert recorded(config.output).equals(before)


def test_an_output_of_other_rows_is_refused(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    rows = [{"row_id": name, "image": "a.png", "prompt": "x"} for name in "ab"]
    jobs.run(jobs.manifest(rows), method="copy")
    with pytest.raises(OutputMismatch, match="'b'"):
        jobs.run(jobs.manifest(rows[:1]), method="copy")
    rows[1]["prompt"] = "another"
    with pytest.raises(OutputMismatch, match=r"changed.*'b'"):
        jobs.run(jobs.manifest(rows), method="copy")


def test_bad_input_is_refused_before_anything_is_written(jobs: Jobs) -> None:
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}] * 2)
    with pytest.raises(InvalidManifest, match="'a' in rows 0, 1"):
        jobs.run(manifest)
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x", "status": "s"}])
    with pytest.raises(InvalidManifest, match="'status'"):
        jobs.run(manifest)
    manifest = jobs.manifest([{"row_id": "a", "image": "a.png", "prompt": "x"}])
    with pytest.raises(InvalidModel, match="no such directory"):
        jobs.run(manifest, model="nowhere")
    with pytest.raises(InvalidModel, match="resolution 40"):
        jobs.run(manifest, resolution=40)
    assert not (jobs.folder / "out").exists()


def test_too_many_failures_stop_the_run_early(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    rows = [{"row_id": f"gone{n}", "image": f"no{n}.png", "prompt": "x"} for n in range(3)]
    rows.append({"row_id": "a", "image": "a.png", "prompt": "x"})
    result = jobs.run(jobs.manifest(rows), max_failed=0.5, method="copy")
    assert result.exit_code == 3
    assert jobs.run(jobs.manifest(rows), max_failed=0.75, method="copy").exit_code == 0


def test_images_tell_how_they_were_made_and_the_choice_is_part_of_the_output(jobs: Jobs) -> None:
    jobs.picture("a.png", 1)
    image = {"image": "a.png", "prompt": "a cat"}
    asked = [
        {"row_id": "edited", **image, "seed": 5, "note": "mine"},
        {"row_id": "copied", **image, "method": "copy"},
        {"row_id": "drawn", "image": None, "source_prompt": "a car", "prompt": "a bus"},
    ]
    manifest = jobs.manifest(asked)
    output = jobs.run(manifest).output
    rows = rows_of(output)
    told = {n: provenance.read(Storage(output).read(row["output"])) for n, row in rows.items()}
    for name, said in told.items():
        known = {key: said[key] for key in TOLD if key in said}
        assert known == {key: rows[name][key] for key in TOLD if rows[name][key] is not None}
    types = {name: said.get("digital_source_type") for name, said in told.items()}
    assert types == {"edited": EDITED, "copied": None, "drawn": GENERATED}
    record = json.loads(Storage(output).read("run.json"))
    assert told["edited"]["model_digest"] == record["settings"]["model_digest"]
    for path in (jobs.folder / "out" / "images").rglob("*.png"):
        assert str(jobs.folder).encode() not in path.read_bytes()

    turned = jobs.manifest(asked[::-1], "turned.jsonl")
    again = rows_of(jobs.run(turned, str(jobs.folder / "two")).output)
    assert {n: r["sha256"] for n, r in again.items()} == {n: r["sha256"] for n, r in rows.items()}
    with pytest.raises(OutputMismatch, match="provenance: True there, False now"):
        jobs.run(manifest, provenance=False)


def test_shards_hold_every_row_once_through_stops_and_retries(jobs: Jobs) -> None:
    images = {name: np.asarray(jobs.picture(f"{name}.png", ord(name))) for name in "abc"}
    (jobs.folder / "c.png").rename(jobs.folder / "later.png")
    manifest = jobs.manifest(
        [{"row_id": name, "image": f"{name}.png", "prompt": "x"} for name in "abc"]
    )
    config = jobs.config(manifest, method="copy", sink="webdataset")
    pipeline.run(with_values(config, limit=1))
    assert pipeline.run(config).summary.failed == 1
    (jobs.folder / "later.png").rename(jobs.folder / "c.png")
    output = pipeline.run(config, only_failed=True).output
    rows, storage = rows_of(output), Storage(output)
    assert set(rows) == set(images)
    for name, row in rows.items():
        data = results.picture(storage, row)
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        with Image.open(io.BytesIO(data)) as image:
            assert (np.asarray(image) == images[name]).all()
    assert {row["output"] for row in rows.values()} == set(storage.files("shards"))
    assert not storage.files("images")
    with pytest.raises(OutputMismatch, match="sink: 'webdataset' there, 'files' now"):
        pipeline.run(with_values(config, sink="files"))
