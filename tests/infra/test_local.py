"""`make cluster`: the whole of it on this machine, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess

import psutil
import pytest

from tests.faults.servers import free_ports
from tests.infra.places import INFRA


@pytest.mark.long
@pytest.mark.ray
def test_the_sample_job_runs_on_a_cluster_of_this_machine(tmp_path):
    output = tmp_path / "out"
    names = ("STORE_PORT", "RAY_PORT", "DASHBOARD_PORT")
    ports = {name: str(port) for name, port in zip(names, free_ports(3), strict=True)}
    # Only what a user's shell has: the suite's own stores are none of the cluster's.
    kept = {name: os.environ[name] for name in ("PATH", "HOME")}
    ended = subprocess.run(
        [INFRA / "local/cluster.sh", "--method", "copy"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, **ports, "OUTPUT": str(output)},
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((output / "run.json").read_text())["done"] == 16
    assert len(list((output / "images").glob("*/*.png"))) == 16
    assert f"output: {output}" in ended.stdout
    left = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if any(ports["RAY_PORT"] in word for word in words)]
