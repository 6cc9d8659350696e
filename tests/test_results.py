"""Results: the record of what is done, each row once whatever happened on the way."""

from __future__ import annotations

import itertools
import shutil
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import parts, results
from pnp_batch.errors import InvalidManifest
from pnp_batch.results import SCHEMA
from pnp_batch.storage import Storage, StorageUnavailable
from tests.records import HISTORY, OUTCOME, SettledMeanwhile, shown, table

EXTRA = pa.schema([("label", pa.string()), ("tags", pa.list_(pa.int8()))])


@pytest.fixture
def output(tmp_path):
    return Storage(str(tmp_path / "out"))


def test_an_output_without_results_has_none(output):
    assert results.read(output).equals(SCHEMA.empty_table())
    assert results.read(output, ["status", "row_id"]).schema.names == ["status", "row_id"]
    results.settle(output)
    assert output.files() == []


def test_what_is_recorded_is_read_back(output):
    schema = results.schema(EXTRA)
    extra = {"label": "x", "tags": [1, 2], "width": 512, "seconds": 0.5}
    written = table(("a", "ok", 0, extra), ("b", "error", 1), schema=schema)
    name = results.write(output, written)
    assert results.parts(output) == [name]
    assert results.read(output).equals(written)
    some = results.read(output, ["label", "row_id"])
    assert some.to_pylist() == [{"label": "x", "row_id": "a"}, {"label": None, "row_id": "b"}]


def test_a_file_is_named_by_its_bytes(output):
    written = table(("a", "error", 0), ("b", "ok", 0))
    first = results.write(output, written)
    assert results.write(output, written) == first
    assert results.write(output, table(("a", "ok", 1), ("b", "ok", 0))) != first
    assert len(results.parts(output)) == 2
    assert shown(results.read(output)) == [("a", "ok", 1), ("b", "ok", 0)]


def test_ok_counts_before_error_and_the_latest_before_earlier_ones(output):
    for part in HISTORY:
        results.write(output, part)
    assert shown(results.read(output)) == OUTCOME


def test_settling_leaves_each_row_in_one_file(output):
    for part in HISTORY:
        results.write(output, part)
    results.settle(output)
    (name,) = results.parts(output)
    assert shown(pq.read_table(output.path(name))) == OUTCOME
    results.settle(output)
    assert results.parts(output) == [name]


def test_settling_mends_a_single_file_too(output):
    results.write(output, table(("a", "error", 0), ("b", "ok", 0), ("a", "ok", 1)))
    results.settle(output)
    (name,) = results.parts(output)
    assert shown(pq.read_table(output.path(name))) == [("a", "ok", 1), ("b", "ok", 0)]


def test_settling_merges_many_small_files(output):
    for n in range(12):
        results.write(output, table((f"{n:02}", "ok", n)))
    before = shown(results.read(output))
    results.settle(output)
    assert len(results.parts(output)) == 1
    assert shown(results.read(output)) == before
    assert len(before) == 12


def test_settling_writes_nothing_where_all_is_settled(output):
    name = results.write(output, table(("a", "ok", 0), ("b", "error", 0)))
    before = output.fs.modified(output.path(name))
    results.settle(output)
    assert output.fs.modified(output.path(name)) == before


def test_large_results_stay_in_files_of_useful_size(output, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_A_GROUP", 5)
    monkeypatch.setattr(parts, "WHOLE_BYTES", 60_000)
    said = Random(0)
    for n in range(36):
        results.write(output, table((f"{n:02}", "ok", n, {"prompt": said.randbytes(4000).hex()})))
    before = results.read(output)
    results.settle(output)
    names = results.parts(output)
    told = [pq.read_metadata(output.path(name)) for name in names]
    assert len(names) > 2
    assert sum(output.size(name) < 60_000 for name in names) == 1
    assert {one.row_group(0).num_rows for one in told} == {5}
    assert shown(results.read(output)) == shown(before)
    results.settle(output)
    assert results.parts(output) == names


def test_settling_leaves_whole_files_alone_that_hold_nothing_in_vain(output, monkeypatch):
    monkeypatch.setattr(parts, "WHOLE_BYTES", 1)
    kept = [results.write(output, table((f"{n}", "ok", n))) for n in range(3)]
    mended = results.write(output, table(("failed", "error", 0), ("alone", "ok", 0)))
    kept.append(results.write(output, table(("failed", "ok", 1))))
    before = shown(results.read(output))
    results.settle(output)
    assert mended not in results.parts(output)
    assert set(kept) < set(results.parts(output))
    assert shown(results.read(output)) == before
    assert len(results.parts(output)) == 5


@pytest.mark.parametrize("seed", range(6))
def test_of_records_that_tie_readers_see_the_same_one_before_during_and_after(output, seed):
    class Watched(Storage):
        """Notes what a reader sees before each file is deleted."""

        def delete(self, name):
            seen.append(results.read(output, ["row_id", "output"]).to_pylist())
            super().delete(name)

    for n in range(5):
        places = [("tie", "ok", 0, {"output": f"{seed}-{n}"}), (f"alone {n}", "ok", 0)]
        results.write(output, table(*places))
    seen = [results.read(output, ["row_id", "output"]).to_pylist()]
    results.settle(Watched(output.uri))
    seen.append(results.read(output, ["row_id", "output"]).to_pylist())
    assert len(seen) == 7
    ties = {row["output"] for rows in seen for row in rows if row["row_id"] == "tie"}
    assert len(ties) == 1
    assert all(len(rows) == 6 for rows in seen)


def test_settling_begins_anew_where_another_process_settles(output):
    class AtOnce(Storage):
        """Another process settles these results when this one has looked at all of them."""

        def read_if_there(self, name):
            if next(calls) == len(HISTORY):
                results.settle(output)
            return super().read_if_there(name)

    calls = itertools.count()
    for part in HISTORY:
        results.write(output, part)
    results.settle(AtOnce(output.uri))
    assert len(results.parts(output)) == 1
    assert shown(results.read(output)) == OUTCOME


@pytest.mark.parametrize("survivors", [1, 3, 7])
def test_a_crash_before_old_files_are_deleted_costs_only_another_settling(
    output, tmp_path, survivors
):
    for part in HISTORY:
        results.write(output, part)
    old = results.parts(output)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    results.settle(output)
    for name in old[:survivors]:  # as if the process had died before it deleted these
        shutil.copy(tmp_path / "copy" / name, tmp_path / "out" / name)
    assert shown(results.read(output)) == OUTCOME
    results.settle(output)
    assert shown(results.read(output)) == OUTCOME
    assert len(results.parts(output)) == 1


def test_a_reader_loses_no_row_while_a_run_settles(output):
    for part in HISTORY:
        results.write(output, part)
    assert shown(results.read(SettledMeanwhile(output.uri))) == OUTCOME


def test_results_of_different_columns_are_read_together(output, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_A_GROUP", 1)
    for row_id, name in (("a", "label"), ("b", "tag")):
        wider = results.schema(pa.schema([(name, pa.string())]))
        results.write(output, table((row_id, "ok", 0, {name: "x"}), schema=wider))
    columns = ["row_id", "label", "tag"]
    wanted = [("a", "x", None), ("b", None, "x")]
    for _ in range(2):
        rows = results.read(output, columns).to_pylist()
        assert sorted(tuple(row[name] for name in columns) for row in rows) == wanted
        results.settle(output)
    assert len(results.parts(output)) == 1


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_damaged_result_file_is_named(output, tmp_path, keep):
    name = results.write(output, table(("a", "ok", 0)))
    data = output.read(name)
    length = int(len(data) * keep) if isinstance(keep, float) else keep % len(data)
    (tmp_path / "out" / name).write_bytes(data[:length])
    with pytest.raises(StorageUnavailable, match=name):
        results.read(output)


def test_a_result_file_damaged_anywhere_is_named(output, tmp_path):
    name = results.write(output, table(("a", "ok", 0, {"prompt": "x" * 50}), ("b", "ok", 1)))
    data = output.read(name)
    for place in range(0, len(data), 61):
        broken = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        (tmp_path / "out" / name).write_bytes(broken)
        with pytest.raises(StorageUnavailable, match=name):
            results.read(output, ["row_id", "status"])


def test_an_extra_column_with_the_name_of_a_results_column_is_refused():
    assert results.schema(EXTRA).names == [*SCHEMA.names, *EXTRA.names]
    for name in ("status", "output", "recorded_at", "latents_key"):
        with pytest.raises(InvalidManifest, match=repr(name)):
            results.schema(pa.schema([("label", pa.string()), (name, pa.string())]))


def test_results_settle_in_object_stores_too(s3):
    output = Storage(s3("results"))
    for part in HISTORY:
        results.write(output, part)
    results.settle(output)
    assert len(results.parts(output)) == 1
    assert shown(results.read(output)) == OUTCOME
