"""Ray's own autoscaler: a run asks for nodes as long as rows wait for workers that it may have."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from ray.util import get_node_ip_address

from tests.faults import jobs
from tests.faults.lost_node import has, kill, of_cluster, start_node

MOST = 3
# Ray's provider of nodes that are processes of the head's machine, which it looks for at this port.
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
PORT, HEAD = 6379, "ray.head.default"
NOTHING = {
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{f"{of}setup_commands": [] for of in ("", "head_", "worker_")},
    **{f"{of}_start_ray_commands": [] for of in ("head", "worker")},
    **{name: [] for name in ("cluster_synced_files", "initialization_commands")},
}


@pytest.mark.long
def test_a_run_asks_for_the_nodes_of_all_workers_that_it_may_have(model, tmp_path):
    manifest = jobs.manifest(tmp_path / "manifest.parquet", 300)
    flags = ("--model", str(model), "--steps", "10", "--batch-size", "2", "--device", "cpu")
    # More CPUs than a worker takes: one of them is no reason for Ray to make another node.
    with _autoscaled(tmp_path, {"CPU": 3, "object_store_memory": 2**27}) as (environ, head):
        flags += ("--workers", f"1:{MOST}", "--address", f"{get_node_ip_address()}:{PORT}")
        with jobs.Job(manifest, str(tmp_path / "out"), flags, environ).started() as running:
            deadline = time.monotonic() + jobs.PATIENCE
            while has(head, jobs.TRANSLATOR) < MOST:
                assert running.driver.poll() is None, running.told()
                assert time.monotonic() < deadline, running.told()
                time.sleep(0.5)


@contextmanager
def _autoscaled(tmp_path, resources):
    """A head without CPUs, whose autoscaler makes nodes: what lets one in, and its processes."""
    folder = Path(tempfile.mkdtemp(prefix="pa-"))  # short: Ray puts sockets below it
    types = {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "work": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": MOST},
    }
    config = {
        **NOTHING,
        "cluster_name": "fake",
        "provider": PROVIDER,
        "max_workers": MOST,
        "available_node_types": types,
        "head_node_type": HEAD,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    environ = {**of_cluster(folder), **jobs.FAIR, "RAY_FAKE_CLUSTER": "1"}
    flags = ("--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false")
    flags += ("--autoscaling-config", str(tmp_path / "cluster.yaml"))
    try:
        head = start_node((), (*flags, "--temp-dir", str(folder / "ray")), folder / "told", environ)
        try:
            yield environ, head
        finally:
            kill(head)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
