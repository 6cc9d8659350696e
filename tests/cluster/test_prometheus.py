"""Prometheus beside a cluster: while a job runs, every panel of the dashboard has its numbers."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from pnp_batch.world import samples
from tests.cluster.nodes import PATIENCE
from tests.faults.servers import free_ports
from tests.infra.monitoring import RULES, SHOWN, filled
from tests.infra.places import INFRA, documents

ROWS, BAD, KNOWN = 200, 3, 4
SHARES = {
    "Rows ended A",
    "GPU busy: share of worker time in the UNet A",
    "Workers that wait for rows: share of their time A",
    "Inversions found in the cache A",
}


@pytest.mark.long
def test_every_panel_has_numbers_while_a_job_runs(cluster, commands, model, tmp_path):
    job = ("submit", str(_manifest(tmp_path)), "--cache", str(tmp_path / "latents"))
    job += ("--model", str(model), "--steps", "10", "--batch-size", "2", "--workers", "1")
    few = commands(*job, "--output", str(tmp_path / "few"), "--limit", str(BAD + KNOWN))
    assert few.returncode == 0, few.stderr
    output = str(tmp_path / "all")
    with _prometheus(cluster.folder / "ray", tmp_path) as asked:
        commands.json(*job, "--output", output, "--detach")
        told, deadline = {}, time.monotonic() + PATIENCE
        while set(told) < set(SHOWN):
            assert time.monotonic() < deadline, f"no numbers for {set(SHOWN) - set(told)}"
            time.sleep(1)
            told = _numbers(asked, output)
        rules = asked("rules")["groups"][0]["rules"]
    assert commands.json("jobs", "stop", output)["state"] == "STOPPED"
    assert {rule["name"]: rule["health"] for rule in rules} == {r["alert"]: "ok" for r in RULES}
    assert told["Rows failed A"] == BAD
    assert told["Workers A"] == 1
    assert told["Rows done A"] + BAD == pytest.approx(told["Rows ended A"] * (ROWS + BAD))
    assert all(0 <= told[name] <= 1 for name in SHARES), told
    assert told["Worker hours A"] > 0
    assert 0 < told["Time left A"] < 10 * 60, "the pace is that of the rows that there are"


def _manifest(folder):
    """Rows of a picture each, after some whose bytes are none."""
    rows = list(samples.many_rows(ROWS, resolution=64))
    torn = [{"bytes": b"no picture %d" % number, "path": None} for number in range(BAD)]
    bad = [{"row_id": f"bad-{n}", "image": image, "prompt": "x"} for n, image in enumerate(torn)]
    samples.write([*bad, *rows], folder / "manifest.parquet")
    return folder / "manifest.parquet"


def _numbers(asked, output):
    """Of each panel what it shows of an output, all at one time."""
    now, numbers = time.time(), {}
    for name, query in SHOWN.items():
        words = {"query": filled(query, output, interval="10s"), "time": str(now)}
        for found in asked("query", **words)["result"]:
            assert found["metric"]["output"] == output
            numbers[name] = float(found["value"][1])
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


@contextmanager
def _prometheus(ray, folder):
    """Prometheus as infra/monitoring has it, in haste; yields how its interface is asked."""
    (config,) = documents("monitoring/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(INFRA / "monitoring" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["file_sd_configs"][0]["files"] = [str(ray / PROMETHEUS_SERVICE_DISCOVERY_FILE)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)

    def asked(what, **words):
        address = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'series'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(command, stderr=log)
    try:
        yield asked
    finally:
        server.terminate()
        server.wait()
