"""A run on hosts that come and go."""

from __future__ import annotations

import os
import time

import pyarrow.parquet as pq

from pnp_batch import metrics
from tests.cluster.nodes import PATIENCE
from tests.faults import jobs as manifests
from tests.faults.lost_node import has
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Folder

ROWS = 600


def test_a_job_grows_with_the_cluster_is_stopped_and_goes_on(cluster, commands, model, tmp_path):
    manifest = manifests.manifest(tmp_path / "manifest.parquet", ROWS)
    output = tmp_path / "out"
    job = ("submit", str(manifest), "--output", str(output), "--model", str(model))
    job += ("--workers", "1:2", "--batch-size", "2", "--steps", "10")
    name = commands.json(*job, "--detach")["id"]
    _until(lambda: _workers(cluster) == [1], "a worker")
    late = cluster.join("--num-cpus", "3")
    _until(lambda: _workers(cluster) == [1, 1], "a worker on the node that has joined")
    _until((output / "results").is_dir, "a record")
    assert commands.json(*job, "--detach")["id"] == name  # it is the one that runs
    _until(lambda: _told(cluster) >= set(metrics.NAMES) - _UNSEEN, "metrics")
    assert commands.json("jobs", "stop", str(output))["state"] == "STOPPED"
    assert commands.json("status", str(output))["state"] == "interrupted"
    before = _times(output)
    assert 0 < len(before) < ROWS
    cluster.lose(late)
    ended = commands(*job)
    assert ended.returncode == 0, ended.stderr
    assert not judge(Folder(str(output)), Expectation(row_ids(manifest), may_fail=()))
    after = _times(output)
    assert {row: after[row] for row in before} == before  # what was done stayed done


# Nothing fails here, and nothing comes from the cache.
_UNSEEN = {metrics.FAILURES}


def _workers(cluster) -> list[int]:
    """How many workers each node has, the head apart."""
    return [has(node, manifests.TRANSLATOR) for n, node in sorted(cluster.nodes.items()) if n]


def _told(cluster) -> set[str]:
    lines = cluster.metrics().splitlines()
    names = {line.split("{")[0].removeprefix("ray_") for line in lines if "{" in line}
    return {name for name in names if name.startswith("pnp_batch_")}


def _times(output) -> dict[str, object]:
    parts = [pq.read_table(part) for part in (output / "results").glob("*.parquet")]
    rows = [row for part in parts for row in part.select(["row_id", "recorded_at"]).to_pylist()]
    return {row["row_id"]: row["recorded_at"] for row in rows}


def _until(true, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"no {what} in {PATIENCE} s; load {os.getloadavg()}"
        time.sleep(0.2)
