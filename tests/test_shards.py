"""`--sink webdataset`: what a shard holds, how it is read, and what becomes of one left over."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pnp_batch import gc, provenance, record, results, shards, sink
from pnp_batch.config import IMAGE_FORMATS, RunConfig
from pnp_batch.dataset.card import write_card
from pnp_batch.errors import InvalidConfig
from pnp_batch.record import Record
from pnp_batch.report.page import write_report
from pnp_batch.storage import Storage, StorageUnavailable

EXTRA = pa.schema([("note", pa.string()), ("blob", pa.binary()), ("n", pa.int64())])
COLOURS = {"b": "red", "a": "lime", "a.b": "blue", "../../up": "teal", "CON": "navy", "ä/x": "gold"}
UNSAFE = {"a.b", "../../up", "CON", "ä/x"}


def table(names=tuple(COLOURS), schema=None, **values) -> pa.Table:
    """Translated rows and a failed one, as they come to the sink."""
    rows = [
        {"row_id": name, "image": "/data/a.png", "prompt": f"{name} cat", "method": "copy"}
        | {"status": "ok", "width": 8, "height": 8, "source_sha256": "5", "resolution": 8}
        | {"note": "ünï", "blob": b"\xff", "seconds": 1.5, **values}
        for name in names
    ]
    rows.append({"row_id": f"gone {names[:1]}", "status": "error", "error_type": "ImageNotFound"})
    painted = [Image.new("RGB", (8, 8), COLOURS[name]).tobytes() for name in names]
    made = pa.Table.from_pylist(rows, schema or results.schema(EXTRA))
    return made.append_column("pixels", pa.array([*painted, None], pa.binary()))


def put(output: Storage, rows: pa.Table, image_format: str = "png") -> pa.Table:
    schema = results.schema(EXTRA)
    return sink.write(rows, output, image_format, schema, "d1", "webdataset")


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path) -> Storage:
    uri = str(tmp_path / "out")
    if request.param == "s3":
        uri = request.getfixturevalue("s3")(f"shards/{tmp_path.name}")
    made = Storage(uri)
    config = RunConfig("m.csv", uri, method="copy", sink="webdataset").as_dict()
    record.write(made, Record(config, {}, rows=7))
    return made


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_a_shard_holds_each_picture_followed_by_its_record(image_format, tmp_path):
    output = Storage(str(tmp_path))
    recorded = put(output, table(), image_format)
    (shard,) = output.files("shards")
    assert shard == f"shards/{hashlib.sha256(output.read(shard)).hexdigest()}.tar"
    with tarfile.open(fileobj=io.BytesIO(output.read(shard))) as tar:
        members = tar.getmembers()
        files = {member.name: tar.extractfile(member).read() for member in members}
    assert all((m.mtime, m.uid, m.uname, m.isfile()) == (0, 0, "", True) for m in members)
    names = [member.name for member in members]
    assert len(names) == len(set(names)) == 2 * len(COLOURS)
    for image, told in zip(names[::2], names[1::2], strict=True):
        key, _, extension = image.partition(".")
        assert (extension, told) == (image_format, f"{key}.json")
        assert "/" not in key
        row = json.loads(files[told])
        assert (key == row["row_id"]) == (row["row_id"] not in UNSAFE)
        assert (row["prompt"], row["note"]) == (f"{row['row_id']} cat", "ünï")
        assert not {"image", "seconds", "recorded_at", "blob", "n"} & set(row)
    for row in recorded.to_pylist():
        if row["status"] == "error":
            assert (row["output"], row["member"], row["sha256"]) == (None, None, None)
            continue
        assert row["output"] == shard
        assert hashlib.sha256(files[row["member"]]).hexdigest() == row["sha256"]
        assert provenance.read(files[row["member"]])["row_id"] == row["row_id"]


def test_equal_rows_give_equal_bytes_in_whatever_order_they_come(tmp_path):
    one, two = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "two"))
    put(one, table())
    put(two, table(tuple(COLOURS)[::-1], seconds=9.0))
    put(two, table())
    assert one.files("shards") == two.files("shards")
    assert len(one.files("shards")) == 1


def test_a_rows_picture_is_read_whichever_way_it_was_written(output):
    put(output, table(("a", "b")))
    put(output, table(("a.b",)))
    sink.write(table(("CON",)), output, "png", results.schema(EXTRA))
    rows = [row for row in results.read(output).to_pylist() if row["status"] == "ok"]
    assert sum(row["member"] is None for row in rows) == 1
    for row in rows:
        data = results.picture(output, row)
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        with Image.open(io.BytesIO(data)) as image:
            expected = Image.new("RGB", (8, 8), COLOURS[row["row_id"]])
            assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_what_is_not_there_is_told(tmp_path):
    output = Storage(str(tmp_path))
    shard, data = shards.packed([("a", {"png": b"x"})])
    with pytest.raises(FileNotFoundError):
        shards.read(output, shard, "a.png")
    output.write(shard, data)
    assert shards.read(output, shard, "a.png") == b"x"
    with pytest.raises(StorageUnavailable, match=r"has no b\.png"):
        shards.read(output, shard, "b.png")
    output.write("shards/broken.tar", b"no tar")
    with pytest.raises(StorageUnavailable, match=r"has no a\.png"):
        shards.read(output, "shards/broken.tar", "a.png")


def test_rows_that_all_failed_make_no_shard(tmp_path):
    output = Storage(str(tmp_path))
    assert put(output, table(())).num_rows == 1
    assert output.files("shards") == []


def test_a_shard_that_no_row_names_is_a_leftover_and_a_missing_one_is_told_by_row(output):
    put(output, table(("a", "b")))
    (named,) = output.files("shards")
    nobodys, data = shards.packed([("a", {"png": b"x"})])
    output.write(nobodys, data)
    found = gc.collect(output.uri)
    assert (found.leftovers, found.missing) == ((nobodys,), ())
    gc.collect(output.uri, delete=True)
    assert output.files("shards") == [named]
    output.delete(named)
    assert sorted(gc.collect(output.uri).missing) == ["a", "b"]


def test_the_report_shows_pictures_out_of_shards(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    manifest = tmp_path / "m.jsonl"
    rows = [{"row_id": name, "image": "a.png", "prompt": "x", "note": ""} for name in COLOURS]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = Storage(str(tmp_path / "out"))
    config = RunConfig(str(manifest), output.uri, method="copy", sink="webdataset").as_dict()
    record.write(output, Record(config, {"model_digest": "d1"}, rows=len(rows)))
    put(output, table())
    write_report(output.uri)
    digests = results.read(output, ["sha256"])["sha256"].drop_null().to_pylist()
    assert len(digests) == len(COLOURS)
    for digest in digests:
        assert output.exists(f"report/thumbs/{digest[:2]}/{digest[:40]}.webp")
    (script,) = output.files("report/data")
    told = output.read(script).decode()
    assert told.count("thumbs/") >= len(COLOURS)
    assert "shards/" not in told  # which no browser could open


def test_the_datasets_library_reads_shards_as_they_are(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    output = Storage(str(tmp_path / "out"))
    record.write(output, Record({}, {}, rows=7))
    put(output, table(("a", "b")))
    put(output, table(("a.b",)))
    with pytest.raises(InvalidConfig, match="need no card") as refused:
        write_card(output.uri)
    files = f"{output.uri}/shards/*.tar"
    assert f"datasets.load_dataset('webdataset', data_files='{files}')" in refused.value.hint
    rows = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert {row["json"]["row_id"] for row in rows} == {"a", "b", "a.b"}
    for row in rows:
        expected = Image.new("RGB", (8, 8), COLOURS[row["json"]["row_id"]])
        assert np.array_equal(np.asarray(row["png"]), np.asarray(expected))
