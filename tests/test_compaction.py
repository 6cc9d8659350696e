"""Compaction: small parts become whole ones while others write, read and die."""

from __future__ import annotations

import itertools
import threading
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import compaction, parts, results
from pnp_batch.compaction import Compaction, due, merge
from pnp_batch.parts import WHOLE_BYTES
from pnp_batch.storage import Storage, StorageUnavailable
from tests.records import HISTORY, OUTCOME, shown, table

EMPTY_PART, A_ROW = 11_000, 170  # bytes, about


class Killed(BaseException):
    """The process is gone."""


class Dying(Storage):
    """Does so many writes and deletions, and after them nothing any more."""

    def __init__(self, uri, steps):
        super().__init__(uri)
        self._left = iter(range(steps))

    def write(self, name, data):
        self._step()
        super().write(name, data)

    def delete(self, name):
        self._step()
        super().delete(name)

    def _step(self):
        if next(self._left, None) is None:
            raise Killed


@pytest.fixture
def output(tmp_path):
    output = Storage(str(tmp_path / "out"))
    for part in HISTORY:
        results.write(output, part)
    return output


def everything(output):
    """All records, however often they stand there."""
    tables = [pq.read_table(output.path(name)) for name in results.parts(output)]
    return shown(pa.concat_tables(tables, promote_options="default"))


def test_a_merge_keeps_every_record_and_nothing_else(output):
    before = everything(output)
    merge(output, results.parts(output))
    (name,) = results.parts(output)
    assert everything(output) == before
    assert shown(results.read(output)) == OUTCOME
    merge(output, [name])
    assert results.parts(output) != [name]
    assert everything(output) == before


@pytest.mark.parametrize("steps", range(len(HISTORY) + 2))
def test_a_kill_at_any_step_loses_no_row_and_counts_none_twice(output, steps):
    old = results.parts(output)
    try:
        merge(Dying(output.uri, steps), old)
        assert steps > len(old)
    except Killed:
        assert steps <= len(old)
    assert shown(results.read(output)) == OUTCOME
    merge(output, results.parts(output))  # of the next driver
    assert shown(results.read(output)) == OUTCOME
    results.settle(output)
    assert everything(output) == OUTCOME


@pytest.mark.parametrize("steps", range(len(HISTORY) + 1))
def test_a_kill_while_settling_loses_no_row_either(output, steps):
    merge(output, results.parts(output)[:3])
    try:
        results.settle(Dying(output.uri, steps))
    except Killed:
        assert shown(results.read(output)) == OUTCOME
        results.settle(output)
    assert everything(output) == OUTCOME


def test_what_goes_away_while_it_is_read_stays_where_it_is(output):
    class Merging(Storage):
        """Another driver has merged the last part before this one reads it."""

        def read_if_there(self, name):
            if name == last and last in results.parts(output):
                merge(output, results.parts(output)[1:])
            return super().read_if_there(name)

    names = results.parts(output)
    last = names[-1]
    with pytest.raises(parts.PartGone):
        merge(Merging(output.uri), names)
    assert names[0] in results.parts(output)
    assert shown(results.read(output)) == OUTCOME


def test_two_who_merge_the_same_parts_at_once_lose_nothing(output):
    class AtOnce(Storage):
        """Another driver merges the same parts, and these again, while this one writes."""

        def write(self, name, data):
            merge(output, names)
            super().write(name, data)
            merge(output, results.parts(output))

    names = results.parts(output)
    merge(AtOnce(output.uri), names)
    assert shown(results.read(output)) == OUTCOME
    results.settle(output)
    assert everything(output) == OUTCOME


def test_a_merged_part_has_a_name_that_was_never_there(output):
    names = results.parts(output)
    told = [pq.read_table(output.path(name)) for name in names]
    made = {parts.write_merged(output, told, results.SCHEMA)[0] for _ in range(3)}
    assert len(made - set(names)) == 3


def test_a_reader_sees_every_row_though_a_listing_passes_over_a_merge(output):
    class Paged(Storage):
        """A listing in pages: old parts are gone when theirs comes, the new one's was before."""

        listed = 0

        def files(self, folder=""):
            self.listed += 1
            names = super().files(folder)
            if self.listed > 1:
                return names
            merge(output, names[2:])
            return names[:2]

    assert shown(results.read(Paged(output.uri))) == OUTCOME


def test_readers_see_every_row_while_others_merge(output):
    def merging():
        while not over.is_set():
            merge(output, results.parts(output))
            results.write(output, table(("more", "ok", next(minutes))))

    over, minutes = threading.Event(), itertools.count()
    writer = threading.Thread(target=merging)
    writer.start()
    try:
        seen = [shown(results.read(output)) for _ in range(20)]
    finally:
        over.set()
        writer.join()
    assert all(set(OUTCOME) <= set(rows) for rows in seen)


def test_parts_of_different_columns_are_merged(output):
    wider = results.schema(pa.schema([("label", pa.string())]))
    results.write(output, table(("wide", "ok", 0, {"label": "x"}), schema=wider))
    merge(output, results.parts(output))
    rows = results.read(output, ["row_id", "label"]).to_pylist()
    assert {row["row_id"]: row["label"] for row in rows} == {
        **{name: None for name, *_ in OUTCOME},
        "wide": "x",
    }


def test_merged_parts_are_whole_and_in_groups(output, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_A_GROUP", 4)
    monkeypatch.setattr(parts, "WHOLE_BYTES", 20_000)
    words = Random(0)
    rows = [(f"{n:02}", "ok", n, {"prompt": words.randbytes(2000).hex()}) for n in range(60)]
    for begun in range(0, 60, 3):
        results.write(output, table(*rows[begun : begun + 3]))
    merge(output, results.parts(output))
    names = results.parts(output)
    files = [pq.read_metadata(output.path(name)) for name in names]
    assert sum(output.size(name) < 20_000 for name in names) <= 1
    assert len(names) > 3
    assert {file.row_group(0).num_rows for file in files} == {4}
    assert len(results.read(output)) == 60 + len(OUTCOME)


def test_nothing_is_due_before_it_is_worth_a_merge():
    small = {f"{n:04}": EMPTY_PART for n in range(compaction.WORTH - 1)}
    assert due({}) == due(small) == []
    assert due({**small, "one more": EMPTY_PART}) == [*sorted(small), "one more"]


def test_a_large_part_waits_until_the_others_are_as_large():
    small = {f"{n:04}": 1000 for n in range(compaction.WORTH)}
    assert "large" not in due({**small, "large": 1000 * compaction.WORTH + 1})
    assert "large" in due({**small, "large": 1000 * compaction.WORTH})


@pytest.mark.parametrize("rows", [1, 16, 256, 30_000])
def test_parts_stay_few_and_records_are_written_a_few_times(rows):
    """The parts of a run, by their sizes alone."""
    there, made, written = {}, 0, 0
    for number in range(20_000 if rows < 1000 else 2000):
        there[f"new {number}"] = EMPTY_PART + rows * A_ROW
        while names := due({n: size for n, size in there.items() if size < WHOLE_BYTES}):
            payload = sum(there.pop(name) - EMPTY_PART for name in names)
            written += payload
            while payload > 0:
                made += 1
                there[f"merged {made}"] = size = min(payload, WHOLE_BYTES) + EMPTY_PART
                payload -= size - EMPTY_PART
        small = [size for size in there.values() if size < WHOLE_BYTES]
        assert len(small) < compaction.WORTH
    assert written <= 2 * (number + 1) * (EMPTY_PART + rows * A_ROW)


def test_parts_are_listed_at_first_and_then_only_when_many_are_new(output):
    class Counting(Storage):
        def sizes(self, folder=""):
            listed.append(written)
            over.set()
            return super().sizes(folder)

    listed, over = [], threading.Event()
    with Compaction(Counting(output.uri)) as behind:
        for written in range(0, 3 * compaction.WORTH, 8):
            behind.look(written)
            if written % compaction.WORTH == 0:
                assert over.wait(60)
                over.clear()
                behind.wait()
    assert listed == [0, compaction.WORTH, 2 * compaction.WORTH]


def test_watching_does_not_wait_for_a_merge(output, monkeypatch):
    class Slow(Storage):
        def sizes(self, folder=""):
            begun.set()
            goes_on.wait()
            return super().sizes(folder)

    monkeypatch.setattr(compaction, "WORTH", 2)
    begun, goes_on = threading.Event(), threading.Event()
    with Compaction(Slow(output.uri)) as behind:
        behind.look(0)
        begun.wait()
        behind.look(1000)
        goes_on.set()
    assert len(results.parts(output)) == 1


def test_a_merge_that_fails_is_told_and_the_run_goes_on(output, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compaction, "WORTH", 2)
    name = results.parts(output)[0]
    (tmp_path / "out" / name).write_bytes(b"rotten")
    with Compaction(output) as behind:
        behind.look(0)
    assert name in caplog.text
    with pytest.raises(StorageUnavailable, match=name):
        results.settle(output)


def test_what_somebody_still_reads_is_spared(output, monkeypatch):
    monkeypatch.setattr(compaction, "WORTH", 2)
    spared = results.parts(output)[:3]
    with Compaction(output, spared) as behind:
        behind.look(0)
    assert set(spared) < set(results.parts(output))
    assert len(results.parts(output)) == len(spared) + 1
    assert shown(results.read(output)) == OUTCOME


def test_parts_are_merged_in_object_stores_too(s3):
    output = Storage(s3("compaction"))
    for part in HISTORY:
        results.write(output, part)
    assert parts.small_parts(output) == {n: output.size(n) for n in results.parts(output)}
    merge(output, results.parts(output))
    assert len(results.parts(output)) == 1
    assert shown(results.read(output)) == OUTCOME
