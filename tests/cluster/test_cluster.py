"""Jobs on hosts that come and go, submitted from a machine beside them."""

from __future__ import annotations

import json
import os
import re
import time

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobSubmissionClient

from pnp_batch import metrics, record
from pnp_batch.status import status
from tests.cluster.nodes import PATIENCE
from tests.faults import jobs as manifests
from tests.faults.lost_node import has
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Folder

SECRET = "a-key-that-nobody-may-see"


def test_a_job_is_followed_to_the_exit_code_of_its_run(cluster, commands, tmp_path):
    rows = [{"row_id": f"r{n}", "image": "missing.png", "prompt": "x"} for n in range(2)]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ("submit", str(manifest), "--output", str(tmp_path / "out"), "--method", "copy")
    ended = commands(*job, "--max-failed", "0", AWS_SECRET_ACCESS_KEY=SECRET)
    assert ended.returncode == 3, ended.stderr
    assert "2 of 2 rows failed" in ended.stderr  # as the run itself has said
    (name,) = re.findall(r"submitted: (pnp-[0-9a-f]{12}-1), ", ended.stderr)
    assert commands.json("jobs", "list")["jobs"][-1]["id"] == name
    told = commands.json("jobs", "logs", str(tmp_path / "out"))
    assert (told["id"], told["state"], told["exit_code"]) == (name, "FAILED", 3)
    assert "2 of 2 rows failed" in told["logs"]
    told = [one.model_dump_json() for one in _client(cluster, commands).list_jobs()]
    assert any(name in one for one in told)
    assert not any(SECRET in one for one in told)
    # The output knows where it was made: once nothing is wrong with its rows, they are run again.
    assert status(str(tmp_path / "out")).command.startswith("pnp-batch submit ")
    manifests.manifest(tmp_path / "pictures.parquet", 1)
    picture = pq.read_table(tmp_path / "pictures.parquet")["image"][0].as_py()["bytes"]
    (tmp_path / "missing.png").write_bytes(picture)
    again = commands.without_address("retry", str(tmp_path / "out"), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["id"] == name.removesuffix("-1") + "-2"
    assert status(str(tmp_path / "out")).done == 2


def test_what_a_run_would_refuse_is_not_submitted(commands, tmp_path):
    before = commands.json("jobs", "list")["jobs"]
    ended = commands("submit", str(tmp_path / "none.parquet"), "--output", str(tmp_path / "out"))
    assert ended.returncode == 4
    assert "none.parquet" in ended.stderr
    assert commands.json("jobs", "list")["jobs"] == before


def test_a_job_that_waits_for_its_node_is_stopped(cluster, commands):
    name = "pnp-0123456789ab-1"
    _client(cluster, commands).submit_job(
        entrypoint="sleep 1000", submission_id=name, entrypoint_num_cpus=1000
    )
    assert commands.json("jobs", "stop", name)["state"] == "STOPPED"
    assert [one["state"] for one in commands.json("jobs", "list")["jobs"] if one["id"] == name] == [
        "STOPPED"
    ]


def test_without_its_token_a_cluster_says_nothing(commands, tmp_path):
    ended = commands("jobs", "list", RAY_AUTH_TOKEN_PATH="", RAY_AUTH_MODE="disabled")
    assert ended.returncode == 1
    assert "wants a token" in ended.stderr
    assert "RAY_AUTH_TOKEN_PATH" in ended.stderr


def test_an_unknown_job_is_named(commands):
    ended = commands("jobs", "logs", "pnp-ffffffffffff-1")
    assert ended.returncode == 4
    assert "pnp-ffffffffffff-1" in ended.stderr


ROWS = 300


@pytest.mark.long
def test_a_job_grows_with_the_cluster_is_stopped_and_goes_on(cluster, commands, model, tmp_path):
    manifest = manifests.manifest(tmp_path / "manifest.parquet", ROWS)
    output = tmp_path / "out"
    job = ("submit", str(manifest), "--output", str(output), "--model", str(model))
    job += ("--workers", "1:3", "--batch-size", "2", "--steps", "10")
    name = commands.json(*job, "--detach")["id"]
    _until(lambda: _workers(cluster)[0] > 0, "a worker")
    late = cluster.join("--num-cpus", "3")
    _until(lambda: _workers(cluster)[1] > 0, "a worker on the node that has joined")
    _until((output / "results").is_dir, "a record")
    assert commands.json(*job, "--detach")["id"] == name  # it is the one that runs
    _until(lambda: _told(cluster) >= set(metrics.NAMES) - _UNSEEN, "metrics")
    assert commands.json("jobs", "stop", str(output))["state"] == "STOPPED"
    assert status(str(output)).state == record.INTERRUPTED
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


def _client(cluster, commands):
    token = commands.token
    return JobSubmissionClient(cluster.dashboard, headers={"Authorization": f"Bearer {token}"})
