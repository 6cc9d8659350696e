"""What an execution says while workers are awaited, load, work and hang."""

from __future__ import annotations

import threading
import time

import pyarrow as pa
import pytest
import ray

from pnp_batch import results
from pnp_batch.control import beat
from pnp_batch.execution import Execution

PATIENCE = 60.0


class OneBlock:
    """The rows to do: a single one."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __len__(self) -> int:
        return 1


class Led:
    """A graph whose test says when it ends, and which hands out its Control."""

    doing = "translating"
    workers = 1
    metrics = None

    def __init__(self, path) -> None:
        self.control = None
        self.started, self.ended = threading.Event(), threading.Event()
        self._path = path

    def blocks(self):
        return OneBlock(self._path)

    def run(self, data, control, count):
        self.control = control
        self.started.set()
        self.ended.wait(PATIENCE)


@pytest.fixture
def graph(tmp_path, shared_ray):
    path = tmp_path / "rows.arrow"
    table = pa.table({"row_id": ["r"]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return Led(path)


def test_it_says_what_goes_on_and_since_when_no_row_has_ended(graph):
    with Execution(graph) as execution:
        looks = execution.watch()

        def until(true):
            deadline = time.monotonic() + PATIENCE
            while not true():
                assert time.monotonic() < deadline
                next(looks)

        until(graph.started.is_set)
        assert execution.phase == "waiting for workers"
        beat(graph.control)
        until(lambda: execution.phase == "loading the model")
        ray.get(graph.control.begin.remote(["r"]))
        until(lambda: execution.phase == "translating")
        # A worker that is there is heard of again and again; that is no row.
        quiet = execution.quiet
        ray.get(graph.control.beat.remote("another", 1000))
        ray.get(graph.control.add.remote({"work_ms": 1000}))
        next(looks)
        assert execution.quiet > quiet
        ray.get(graph.control.add.remote({results.OK: 1}))
        ray.get(graph.control.end.remote(["r"]))
        until(lambda: not execution.seen.in_flight)
        assert execution.quiet < quiet
        assert execution.phase == "translating"  # and not back to what was before
        graph.ended.set()
        assert next(looks, None) is None
    assert execution.state == "done"
