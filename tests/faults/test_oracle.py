"""The judge: content with a good output, and never with one that is damaged by hand."""

from __future__ import annotations

import hashlib
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save

from pnp_batch.world import samples
from tests.faults.oracle import Expectation, judge, judge_cache, judge_same, row_ids
from tests.faults.places import Folder, Prefix

pytestmark = pytest.mark.faults

KEY = "ab" + "0" * 62
LATENTS = f"latents/ab/{KEY}.safetensors"
EXPECTED = Expectation(["a-0", "a-1", "b", "bad"], may_fail=["bad"])


def image_of(name):
    return f"images/0{len(name)}/{name}.png"


def record(name, status="ok", sha256=None):
    ok = status == "ok"
    return {
        "row_id": name,
        "status": status,
        "error_type": None if ok else "ImageNotFound",
        "output": image_of(name) if ok else None,
        "width": 8 if ok else None,
        "height": 8 if ok else None,
        "sha256": sha256,
        "latents_key": KEY if ok else None,
        "extra": 1,
    }


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("row_id", "status", "error_type", "output")]
    + [("width", pa.int64()), ("height", pa.int64())]
    + [("sha256", pa.string()), ("latents_key", pa.string()), ("extra", pa.int64())]
)


def parquet(rows, schema=SCHEMA):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def rows_of(place, name):
    return pq.read_table(io.BytesIO(place.read(name))).to_pylist()


def write_good(place):
    rows = []
    for k, name in enumerate(("a-0", "a-1", "b")):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        place.write(image_of(name), buffer.getvalue())
        rows.append(record(name, sha256=hashlib.sha256(buffer.getvalue()).hexdigest()))
    place.write("results/1.parquet", parquet(rows[:2]))
    place.write("results/2.parquet", parquet([rows[2], record("bad", "error")]))
    place.write(LATENTS, save({"trajectory": np.ones((2, 4, 4), np.float32)}))
    place.write("run.json", json.dumps({"state": "done"}).encode())


@pytest.fixture
def reference(tmp_path):
    place = Folder(tmp_path / "reference")
    write_good(place)
    return place


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        place = Folder(tmp_path / "output")
        write_good(place)
        yield place
    else:
        store = request.getfixturevalue("moto").store
        place = Prefix(store, f"oracle/{tmp_path.name}")
        write_good(place)
        yield place
        place.client.close()


def test_a_good_output_is_fine(output, reference):
    assert judge(output, EXPECTED, reference) == []


def changed(**values):
    """Records row b, or the one it becomes, with other values."""

    def damage(place):
        row, *others = rows_of(place, "results/2.parquet")
        place.write("results/2.parquet", parquet([{**row, **values}, *others]))

    return damage


def cut(name):
    return lambda place: place.write(name, place.read(name)[: len(place.read(name)) // 2])


def flipped(name, at):
    def damage(place):
        data = bytearray(place.read(name))
        data[at] ^= 1
        place.write(name, bytes(data))

    return damage


def recorded_anew(place):
    """Another picture, rightly recorded: only a reference can tell."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    place.write(image_of("b"), buffer.getvalue())
    changed(sha256=hashlib.sha256(buffer.getvalue()).hexdigest())(place)


def doubled(place):
    place.write("results/3.parquet", place.read("results/1.parquet"))


def swapped(place):
    place.write(image_of("b"), place.read(image_of("a-0")))


def without_a_column(place):
    schema = SCHEMA.remove(SCHEMA.get_field_index("sha256"))
    place.write("results/1.parquet", parquet(rows_of(place, "results/1.parquet"), schema))


def added(name, data=b"x"):
    return lambda place: place.write(name, data)


def removed(name):
    return lambda place: place.delete(name)


WHOSE = f"the image of row b, {image_of('b')}, "
DAMAGE = {
    "missing row": (
        lambda place: place.write("results/2.parquet", parquet([record("bad", "error")])),
        ["row b is recorded 0 times", f"{image_of('b')} is left over and named by no row"],
    ),
    "doubled rows": (
        doubled,
        ["row a-0 is recorded 2 times", "row a-1 is recorded 2 times"],
    ),
    "strange row": (
        changed(row_id="stranger"),
        ["row stranger is recorded and not in the manifest", "row b is recorded 0 times"],
    ),
    "status": (changed(status="running"), ["row b has the status running"]),
    "error without a type": (
        changed(row_id="bad", status="error"),
        ["row bad is no proper error: None", "row b is rec", "row bad is recorded 2 times"],
    ),
    "error without a reason": (
        changed(status="error", error_type="StorageError", output=None),
        ["row b ended as StorageError", f"{image_of('b')} is left over"],
    ),
    "shared image": (
        changed(output=image_of("a-0")),
        [
            f"{image_of('a-0')} is the image of more than one row",
            "the image of row b, .* has another sha256",
            f"{image_of('b')} is left over",
        ],
    ),
    "missing image": (removed(image_of("b")), [WHOSE + "is not there"]),
    "another image": (
        swapped,
        [WHOSE + "has another sha256", f"{image_of('b')} has other bytes"],
    ),
    "another image, recorded": (recorded_anew, [f"{image_of('b')} has other bytes"]),
    "wrong byte": (
        flipped(image_of("b"), -20),  # in the compressed pixels
        [WHOSE + "has another sha256", WHOSE + "does not open whole", "has other bytes"],
    ),
    "cut image": (
        cut(image_of("b")),
        [WHOSE + "has another sha256", WHOSE + "does not open whole", "has other bytes"],
    ),
    "wrong size": (changed(width=9), [WHOSE + r"is \(8, 8\), recorded is 9 x 8"]),
    "cut results": (
        cut("results/2.parquet"),
        [
            r"results/2.parquet cannot be read",
            "row b is rec",
            "row bad is rec",
            f"{image_of('b')} is left over",
        ],
    ),
    "results without a column": (
        without_a_column,
        ["results/1.parquet cannot be read: .*sha256", *["row a-. is recorded 0 times"] * 2]
        + ["images/.* is left over"] * 2,
    ),
    "cut latents": (cut(LATENTS), [f"{LATENTS} does not open whole", f"{LATENTS} has other bytes"]),
    "wrong byte in latents": (flipped(LATENTS, -1), [f"{LATENTS} has other bytes"]),
    "no run.json": (removed("run.json"), ["run.json is not there"]),
    "cut run.json": (cut("run.json"), ["run.json cannot be read"]),
    "left-over image": (added("images/00/old.png"), ["images/00/old.png is left over and named"]),
    "left-over latents": (
        lambda place: place.write(LATENTS.replace("ab", "cd"), place.read(LATENTS)),
        ["latents/cd/cd.* is left over and named by no row"],
    ),
    "temporary file": (added("results/1.parquet.tmp"), ["results/1.parquet.tmp is left over"]),
    "hidden file": (added("images/03/.b.png"), ["images/03/.b.png is left over and temporary"]),
    "hidden results": (
        lambda place: place.write("results/.3.parquet", parquet([])),
        ["results/.3.parquet is left over and temporary"],
    ),
    "hidden folder": (added(".parts/1"), [".parts/1 is left over and temporary"]),
    "report": (added("report/index.html"), ["report/index.html is left over"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_finds_the_damage_and_nothing_else(output, reference, damage):
    harm, expected = DAMAGE[damage]
    harm(output)
    findings = judge(output, EXPECTED, reference)
    for pattern in expected:
        found = [one for one in findings if re.search(pattern, one)]
        assert found, f"{pattern!r} not in {findings}"
        findings.remove(found[0])
    assert findings == []


def test_a_file_that_went_away_is_named(output):
    output.delete("run.json")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        output.read("run.json")


def test_a_report_and_failures_may_be_allowed(output):
    output.write("report/index.html", b"x")
    changed(status="error", error_type="StorageError", output=None)(output)
    output.delete(image_of("b"))
    assert judge(output, Expectation(EXPECTED.row_ids, report=True)) == []


@pytest.mark.parametrize("output", ["s3"], indirect=True)
def test_an_open_multipart_upload_is_found(output):
    place = {"Bucket": output.bucket, "Key": output.prefix + image_of("b")}
    upload = output.client.create_multipart_upload(**place)["UploadId"]
    assert judge(output, EXPECTED) == [f"a multipart upload of {image_of('b')} is still open"]
    output.client.abort_multipart_upload(**place, UploadId=upload)
    assert judge(output, EXPECTED) == []


def test_a_cache_of_its_own_is_judged_too(tmp_path):
    entry, name = save({"trajectory": np.ones(4, np.float32)}), f"ab/{KEY}.safetensors"
    cache, reference = Folder(tmp_path / "cache"), Folder(tmp_path / "reference")
    for place in (cache, reference):
        place.write(name, entry)
    assert judge_cache(cache, reference) == []
    cache.write(name, entry[:-1] + b"x")
    cache.write(f"cd/{KEY}.safetensors", entry)
    cache.write("ab/cut.safetensors", entry[:-1])
    patterns = [
        "ab/cut.safetensors does not open whole",
        "ab/cut.safetensors is no entry and left",
        f"cd/{KEY}.safetensors is no entry and left",
        f"{name} has other bytes than without faults",
    ]
    found = judge_cache(cache, reference)
    assert len(found) == len(patterns)
    assert all(map(str.startswith, found, patterns)), found


def test_what_another_place_lacks_or_has_otherwise_is_found(tmp_path):
    made, reference = Folder(tmp_path / "made"), Folder(tmp_path / "reference")
    for name in ("a.png", "b.png", "c.png"):
        reference.write(name, b"right")
    made.write("a.png", b"right")
    made.write("b.png", b"wrong")
    found = judge_same(made, reference)
    assert found == ["c.png is missing", "b.png has other bytes than without faults"]


def test_the_expected_ids_come_from_the_manifest(tmp_path):
    path = tmp_path / "manifest.parquet"
    samples.write(samples.shown_rows()[:2], path)
    assert row_ids(path) == ["house-0", "house-1", "cat-0", "cat-1"]
    pq.write_table(pa.table({"row_id": ["a", "b"], "prompt": ["x", "y"]}), path)
    assert row_ids(path) == ["a", "b"]
