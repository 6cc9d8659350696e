"""One cluster of hosts for these tests, and the command line as it is used from beside them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import tiny
from tests.cluster import nodes
from tests.faults.lost_node import wait_for_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hosts in network namespaces take root, and Linux."""
    may = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip")
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker(pytest.mark.ray)
            if not may:
                item.add_marker(pytest.mark.skip(reason="makes network namespaces: run it as root"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[nodes.Cluster]:
    """A head, and one node that works."""
    with nodes.cluster(hosts=3) as there:
        there.join("--num-cpus", "3")  # room for two workers, and for what reads and writes
        wait_for_nodes(there.gcs, there.environ, len(there.nodes))
        yield there


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny real Stable Diffusion, which every host sees."""
    return tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1")


class Commands:
    """`pnp-batch` on a machine that is no node, with the cluster's token."""

    def __init__(self, cluster: nodes.Cluster) -> None:
        self._cluster = cluster

    @property
    def token(self) -> str:
        """The cluster's token."""
        return Path(self._cluster.environ["RAY_AUTH_TOKEN_PATH"]).read_text()

    def __call__(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command that talks to the cluster, ended; what it said and its exit code."""
        return self.without_address(*words, "--address", self._cluster.dashboard, **environ)

    def without_address(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command that has to know by itself where the cluster is."""
        return subprocess.run(
            [sys.executable, "-m", "pnp_batch", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=3 * nodes.PATIENCE,
            env={**os.environ, **self._cluster.environ, **environ},
        )

    def json(self, *words: str) -> Any:
        """The answer of a command that talks to the cluster."""
        ended = self(*words, "--json")
        assert ended.stdout, ended.stderr
        return json.loads(ended.stdout)


@pytest.fixture
def commands(cluster: nodes.Cluster) -> Commands:
    """The command line beside the cluster."""
    return Commands(cluster)
