"""The listing: every row of a manifest, on disk as it is and in memory as a few numbers."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import listing, manifest, methods
from pnp_batch.batches import PLACE, RECIPE, cuts, ordered, places
from pnp_batch.config import RunConfig
from pnp_batch.digest import digests
from pnp_batch.errors import InvalidManifest
from pnp_batch.listing import EMBEDDED, GENERATED, LINKED, Blocks, Listing, RowFile
from pnp_batch.rows import expand

METHODS = {name: methods.get(name) for name in ("pnp", "sdedit")}
MANY = 40_000  # several batches of a manifest


def listed(path, **config):
    job = RunConfig(manifest=str(path), output="out", **config)
    return Listing(manifest.read(str(path)), job, METHODS)


@pytest.fixture
def rows_of(tmp_path):
    """`rows_of(rows)`: the listing of manifest rows."""

    def rows_of(*rows):
        path = tmp_path / "m.jsonl"
        plain = {"image": "a.png", "prompt": "a cat"}
        path.write_text("".join(json.dumps({**plain, **row}) + "\n" for row in rows))
        return listed(path)

    return rows_of


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The path of a manifest of many rows, each image with three of them far apart."""
    path = tmp_path_factory.mktemp("many") / "m.parquet"
    images = [f"{n % (MANY // 3 + 1)}.png" for n in range(MANY)]
    names = [f"r{n}" for n in range(MANY)]
    pq.write_table(pa.table({"row_id": names, "image": images, "prompt": names}), path)
    return path


def test_an_id_that_stands_twice_is_refused_with_its_first_places(rows_of):
    with pytest.raises(InvalidManifest, match="row_id is not unique: 4 of them") as refused:
        rows_of(*({"row_id": name} for name in "abacbddee"))
    assert "'a' in rows 0, 2; 'b' in rows 1, 4; 'd' in rows 5, 6" in str(refused.value)
    assert "'e'" not in str(refused.value)


def test_ids_may_not_collide_after_lists_are_spread_either(rows_of):
    with pytest.raises(InvalidManifest, match="'a-1' in rows 1, 2"):
        rows_of({"row_id": "a", "prompt": ["x", "y"]}, {"row_id": "a-1"})


def test_different_ids_of_one_digest_are_refused_as_such(rows_of, monkeypatch):
    monkeypatch.setattr(listing, "digests", lambda texts: digests(texts) % np.uint64(50))
    with pytest.raises(InvalidManifest, match=r"row_ids 'r\d+' and 'r\d+' have one digest"):
        rows_of(*({"row_id": f"r{n}"} for n in range(60)))


def test_the_index_says_of_each_row_what_arranging_it_takes(rows_of):
    found = rows_of(
        {"row_id": "a"},
        {"row_id": "b", "image": "b.png", "pnp_f_t": 0.2},
        {"row_id": "c", "pnp_f_t": 7.0},
        {"row_id": "d", "prompt": ["x", ""]},
        {"row_id": "e", "image": None, "source_prompt": "a dog"},
    )
    rows = found.file.take(np.arange(len(found))).to_pylist()
    assert [row["row_id"] for row in rows] == ["a", "b", "c", "d-0", "d-1", "e"]
    assert found.ids.tolist() == digests(pa.array([r["row_id"] for r in rows])).tolist()
    assert found.hashes.tolist() == digests(pa.array([r["row_hash"] for r in rows])).tolist()
    assert found.usable.tolist() == [True, True, False, True, False, True]
    assert found.origin.tolist() == [LINKED] * 5 + [GENERATED]
    for one, other in itertools.product(range(6), repeat=2):
        same = rows[one]["guidance"] == rows[other]["guidance"]
        assert (found.guidance[one] == found.guidance[other]) == same
    for row, code in zip(rows, found.recipe, strict=True):
        wanted = {name: None if row["problem"] else row[name] for name in RECIPE}
        assert found.recipes[code] == wanted
    assert len(found.recipes) == 3


def test_values_that_make_rows_unusable_are_not_remembered(rows_of):
    found = rows_of(*({"row_id": f"r{n}", "pnp_f_t": float("nan")} for n in range(50)))
    assert not found.usable.any()
    assert len(found.recipes) == 1


def test_embedded_images_lie_in_the_file(tmp_path):
    large = bytes(100_000)
    images = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate((large, None, b"one"))]
    table = pa.table({"image": images, "prompt": [["x"] * 50, ["y"], ["z", "z"]]})
    pq.write_table(table, tmp_path / "m.parquet")
    found = listed(tmp_path / "m.parquet")
    assert found.origin.tolist() == [EMBEDDED] * 50 + [LINKED] + [EMBEDDED] * 2
    kept = found.file.take(np.array([52, 50, 7, 51, 0]))["image_bytes"].to_pylist()
    assert kept == [b"one", None, large, b"one", large]
    assert Path(found.file.path).stat().st_size < 2 * len(large)  # once, however often it is used


def test_any_rows_are_taken_in_any_order(many):
    found = listed(many)
    names = found.file.take(np.array([0])).column_names
    whole = pa.concat_tables(found.file.chunks(names))
    dice = np.random.default_rng(0)
    for wanted in (
        dice.integers(0, MANY, 300),  # some of them twice
        np.arange(MANY - 5, MANY),
        np.array([], np.int64),
    ):
        assert found.file.take(wanted).equals(whole.take(pa.array(wanted)))
    job = RunConfig(manifest=str(many), output="out")
    assert whole.equals(pa.concat_tables(expand(manifest.read(str(many)), job, METHODS)))


def test_blocks_hand_out_every_row_once_with_its_place(many):
    found = listed(many)
    place = places(found.guidance, found.recipe, 8)
    order = ordered(found.guidance, place.share)
    ends = cuts(found.guidance[order], place.share[order], place.images[order], 50)
    blocks = Blocks(found.file.path, order, place.of(order), ends)
    file = RowFile(found.file.path)
    tables = [blocks.rows(file, number) for number in range(len(blocks))]
    seen = [row_id for table in tables for row_id in table["row_id"].to_pylist()]
    assert sorted(seen) == sorted(f"r{n}" for n in range(MANY))
    for table in tables[::7]:
        for row in table.select(["row_id", *PLACE]).to_pylist():
            index = int(row["row_id"][1:])
            assert [row[n] for n in PLACE] == [getattr(place, n)[index] for n in PLACE]


def test_the_file_goes_with_the_listing(rows_of):
    found = rows_of({})
    folder = Path(found.file.path).parent
    assert folder.is_dir()
    del found
    gc.collect()
    assert not folder.exists()


def test_what_a_killed_process_has_left_goes_with_the_next_one(rows_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    killed = "from pnp_batch.process import temporary_folder as f; import os; f(); os._exit(1)"
    subprocess.run([sys.executable, "-c", killed], check=False)
    (left,) = tmp_path.glob("pnp-*")
    found = rows_of({})
    assert not left.exists()
    assert Path(found.file.path).is_relative_to(tmp_path)


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path):
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from pnp_batch.cli import main; main(['validate', sys.argv[1]])"
    )
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a.png", "prompt": "x"}\n' * 200)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    error, hint = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert error.startswith(f"error: cannot keep the rows of {path} in ")
    assert "TMPDIR" in hint
