"""What an output has recorded: an index of its rows, whatever becomes of the files meanwhile."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from pnp_batch import parts, results
from pnp_batch import recorded as module
from pnp_batch.digest import Distinct, digests
from pnp_batch.results import Failure, Summary, recorded
from pnp_batch.storage import Storage, StorageUnavailable
from tests.records import HISTORY, NOON, OUTCOME, SettledMeanwhile, shown, table


@pytest.fixture
def output(tmp_path):
    return Storage(str(tmp_path / "out"))


def named(*names):
    """The digests of these ids."""
    return digests(pa.array(names, pa.string()))


def test_a_digest_is_the_first_64_bits_of_the_sha256():
    texts = [f"row {n} é" for n in range(10_000)]
    wanted = [int(hashlib.sha256(t.encode()).hexdigest()[:16], 16) for t in texts]
    assert digests(pa.array(texts)).tolist() == wanted
    chunked = pa.chunked_array([texts[:7], texts[7:]])
    assert digests(chunked.slice(5)).tolist() == wanted[5:]
    empty = int(hashlib.sha256(b"").hexdigest()[:16], 16)
    assert digests(pa.array([None, ""])).tolist() == [empty, empty]
    assert digests(pa.array([], pa.string())).dtype == np.uint64


def test_a_set_of_numbers_knows_each_of_them_once():
    dice, there, known = np.random.default_rng(0), Distinct(), set()
    for _ in range(200):
        some = dice.integers(0, 2**11, dice.integers(0, 40)).astype(np.uint64)
        assert there.has(some).tolist() == [value in known for value in some.tolist()]
        there.add(some)
        known |= set(some.tolist())
        assert len(there) == len(known)


def test_nothing_recorded_is_an_empty_index(output):
    there = recorded(output)
    assert len(there) == len(there.ids) == 0
    assert there.summary() == Summary()
    assert there.names(np.array([], int), 3) == []


def test_each_row_has_one_entry_for_the_record_that_counts(output):
    for part in HISTORY:
        results.write(output, part)
    there = recorded(output)
    names, statuses, minutes = zip(*OUTCOME, strict=True)
    order = np.argsort(named(*names))
    assert there.ids.tolist() == named(*names)[order].tolist()
    assert there.ok.tolist() == [statuses[n] == "ok" for n in order]
    at = [(datetime.fromtimestamp(t / 1e6, UTC) - NOON).seconds // 60 for t in there.times.tolist()]
    assert at == [minutes[n] for n in order]
    assert shown(results.read(output)) == OUTCOME


def test_an_entry_has_the_digest_of_the_row_hash_that_counts(output):
    results.write(output, table(("a", "ok", 1, {"row_hash": "new"}), ("b", "ok", 0)))
    results.write(output, table(("a", "ok", 0, {"row_hash": "old"})))
    there = recorded(output)
    assert dict(zip(there.ids.tolist(), there.hashes.tolist(), strict=True)) == dict(
        zip(named("a", "b").tolist(), named("new", "").tolist(), strict=True)
    )


def test_an_entry_has_the_same_width_whatever_a_row_holds(output):
    long = {"prompt": "p" * 1000, "error_type": "E" * 100, "error_message": "m" * 1000}
    rows = [(f"{'i' * 200}{n}", "error", n, {**long, "row_hash": str(n)}) for n in range(100)]
    results.write(output, table(*rows))
    arrays = [a for a in vars(recorded(output)).values() if isinstance(a, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 40 * 100


def test_a_record_without_a_time_is_the_earliest(output):
    never = pa.Table.from_pylist([{"row_id": "a", "status": "ok", "row_hash": "x"}], results.SCHEMA)
    results.write(output, never)
    results.write(output, table(("a", "ok", -(10**8), {"row_hash": "y"})))
    assert recorded(output).hashes.tolist() == named("y").tolist()


MISSING = {"error_type": "ImageNotFound", "error_message": "no such file: a.png"}
LARGE = {"error_type": "ImageTooLarge", "error_message": None}
FAILING = (
    ("a", "ok", 0),
    ("b", "error", 0, LARGE),
    ("c", "error", 0, MISSING),
    ("d", "error", 0, {**MISSING, "error_message": "no such file: d.png"}),
    ("e", "error", 0, {"error_type": "ImageUndecodable", "error_message": "none"}),
)


def chosen(there, *names):
    return np.isin(there.ids, named(*names))


def test_the_summary_counts_rows_and_shows_the_first_failure_of_each_kind(output):
    results.write(output, table(*FAILING))
    assert recorded(output).summary() == Summary(
        1,
        4,
        (
            Failure("ImageNotFound", 2, "c", "no such file: a.png"),
            Failure("ImageTooLarge", 1, "b", ""),
            Failure("ImageUndecodable", 1, "e", "none"),
        ),
    )


def test_the_summary_of_some_rows_is_theirs_alone(output):
    results.write(output, table(*FAILING))
    there = recorded(output)
    assert there.summary(chosen(there, "a", "d", "e")) == Summary(
        1,
        2,
        (
            Failure("ImageNotFound", 1, "d", "no such file: d.png"),
            Failure("ImageUndecodable", 1, "e", "none"),
        ),
    )
    assert there.summary(chosen(there)) == Summary()


def parts_in_order(output, count, rows=3):
    """Writes parts of failed rows; their ids in the order of parts and places."""
    written = {}
    for n in range(count):
        names = [f"{n}-{place}" for place in range(rows)]
        written[results.write(output, table(*((i, "error", 0, MISSING) for i in names)))] = names
    return [name for part in sorted(written) for name in written[part]]


def test_many_parts_are_read_in_their_order(output, monkeypatch):
    monkeypatch.setattr(module, "ROWS_A_GROUP", 2)
    names = parts_in_order(output, 40)
    assert results.read(output, ["row_id"])["row_id"].to_pylist() == names
    there = recorded(output)
    assert there.summary().failures[0].row_id == names[0]
    assert there.summary(chosen(there, *names[50:])).failures[0].row_id == names[50]
    (some,) = np.nonzero(chosen(there, *names[::7]))
    assert there.names(some, 5) == names[::7][:5]
    assert there.names(some, 99) == names[::7]


@pytest.mark.parametrize(("ahead", "most"), [(parts.AHEAD_BYTES, parts.READERS), (1, 1)])
def test_few_parts_are_in_memory_at_a_time(output, monkeypatch, ahead, most):
    class Counting(Storage):
        """Notes which parts are read."""

        def read_if_there(self, name):
            with lock:
                read.append(name)
            return super().read_if_there(name)

    lock, read = threading.Lock(), []
    parts_in_order(output, 3 * parts.READERS, rows=1)
    monkeypatch.setattr(parts, "AHEAD_BYTES", ahead)
    stream = parts.some_parts(Counting(output.uri), results.parts(output), lambda file: file)
    done = [next(stream) for _ in range(parts.READERS)]
    stream.close()  # what was read ahead is there now
    assert len(done) <= len(read) <= len(done) - 1 + most


def test_no_row_is_missed_while_a_run_settles(output):
    for part in HISTORY:
        results.write(output, part)
    there = recorded(SettledMeanwhile(output.uri))
    names, statuses, _ = zip(*OUTCOME, strict=True)
    assert set(there.ids.tolist()) == set(named(*names).tolist())
    assert len(there) == len(names)
    assert there.ok.sum() == statuses.count("ok")


def test_parts_are_read_once_though_others_vanish_meanwhile(output, monkeypatch):
    class LastMoves(Storage):
        """Another process puts what the last part holds into a new one."""

        def read_if_there(self, name):
            read.append(name)
            if name == last and last in results.parts(output):
                results.write(output, table(*((i, "error", 1, MISSING) for i in names[-3:])))
                output.delete(last)
            return super().read_if_there(name)

    monkeypatch.setattr(parts, "AHEAD_BYTES", 1)
    read = []
    names = parts_in_order(output, 5)
    before = results.parts(output)
    last = before[-1]
    there = recorded(LastMoves(output.uri))
    assert there.names(np.arange(len(there)), 99) == names
    (new,) = set(results.parts(output)) - set(before)
    assert read[:6] == [*before, new]


def test_what_has_moved_since_is_found_where_it_is_now(output):
    results.write(output, table(*FAILING[:3]))
    results.write(output, table(*FAILING[3:]))
    there = recorded(output)
    mask = chosen(there, "a", "d", "e")
    before = there.summary(mask)
    results.write(output, table(("b", "ok", 9)))
    results.settle(output)
    assert there.summary(mask) == before
    assert set(there.names(np.flatnonzero(mask), 5)) == {"a", "d", "e"}
    assert there.summary(chosen(there, "b", "c")).done == 1
    for name in results.parts(output):
        output.delete(name)
    assert there.summary() == Summary()


def test_a_part_that_is_listed_but_not_there_is_named(output):
    class Stale(Storage):
        """A listing that says more than there is."""

        def files(self, folder=""):
            return [*super().files(folder), "results/part-0.parquet"]

    results.write(output, HISTORY[0])
    with pytest.raises(StorageUnavailable, match=r"part-0\.parquet is listed"):
        recorded(Stale(output.uri))
