"""A private Ray is nobody else's: no process of it can be reached from another machine."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

SCRIPT = """
import sys
from pnp_batch import cluster
with cluster.connected(None):
    print("started", flush=True)
    sys.stdin.readline()
"""
LOOPBACK = ("127.", "::1", "::ffff:127.")


@pytest.mark.ray
def test_every_socket_of_a_private_ray_is_bound_to_loopback():
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "started\n"
    ours = psutil.Process(driver.pid)
    bound = [
        (process.name(), connection.laddr.ip)
        for process in (ours, *ours.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    driver.communicate("\n")
    assert {name for name, _ in bound} >= {"gcs_server", "raylet"}
    assert [one for one in bound if not one[1].startswith(LOOPBACK)] == []


def test_a_dashboard_is_no_cluster_to_run_on():
    script = "from pnp_batch import cluster\nwith cluster.connected('http://head:8265'): pass"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "ClusterUnavailable: http://head:8265 is the address of a dashboard" in done.stderr
