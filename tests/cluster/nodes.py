"""A real Ray cluster of several hosts on one machine: each node in a network namespace of its own.

The hosts are joined by a bridge, on which this process has an address too. Ray is opened by a token
alone. Each node is a session of processes that can be killed at one stroke, as a lost host is.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lost_node import Node, kill, of_cluster, start_node

HOST, WIRE, BRIDGE, SUBNET = "pnp", "pnpv", "pnpbr", "10.77.0"
LOCK = Path(tempfile.gettempdir()) / "pnp-batch-hosts.lock"
GCS_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8090
PATIENCE = 120.0


def _ip(*words: str) -> str:
    ran = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, f"ip {' '.join(words)}: {ran.stderr}"
    return ran.stdout


@dataclass
class Cluster:
    """A head without work of its own, and the nodes that have joined.

    Attributes:
        folder: of the head's files.
        environ: what a process needs to be let in.
        nodes: by their number; 0 is the head.
    """

    folder: Path
    environ: dict[str, str]
    nodes: dict[int, Node] = field(default_factory=dict)

    @property
    def gcs(self) -> str:
        """The address that drivers and nodes connect to."""
        return f"{_host(0)}:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        """The address of the Jobs API."""
        return f"http://{_host(0)}:{DASHBOARD_PORT}"

    def metrics(self, number: int = 0) -> str:
        """What a node tells Prometheus."""
        address = f"http://{_host(number)}:{METRICS_PORT}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            told: bytes = answer.read()
        return told.decode()

    def join(self, *flags: str) -> int:
        """Adds a node with so much of Ray's resources; its number."""
        number = max(self.nodes) + 1
        self.nodes[number] = self._start(number, ("--address", self.gcs, *flags))
        return number

    def lose(self, number: int) -> None:
        """Kills a node at one stroke."""
        kill(self.nodes.pop(number))

    def head(self) -> None:
        """Starts the head, whose CPUs are for Control and its like alone."""
        flags = ("--head", "--port", str(GCS_PORT), "--num-cpus", "0", "--temp-dir")
        shown = ("--dashboard-host", "0.0.0.0", "--dashboard-port", str(DASHBOARD_PORT))
        self.nodes[0] = self._start(0, (*flags, str(self.folder / "ray"), *shown))

    def _start(self, number: int, flags: tuple[str, ...]) -> Node:
        own = ("--node-ip-address", _host(number), "--metrics-export-port", str(METRICS_PORT))
        flags = (*flags, *own, "--object-store-memory", str(2**27))
        within = ("ip", "netns", "exec", _namespace(number))
        return start_node(within, flags, self.folder / f"told-{number}", self.environ)


def _host(number: int) -> str:
    return f"{SUBNET}.{number + 10}"


def _namespace(number: int) -> str:
    return f"{HOST}{number}"


@contextmanager
def cluster(hosts: int) -> Iterator[Cluster]:
    """A head, and places for so many hosts in all that may join it."""
    folder = Path(tempfile.mkdtemp(prefix="pc-"))
    environ = {
        **of_cluster(folder),
        # Jobs run `python`, which on a host is the one that has Ray.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_metrics_report_interval_ms": "1000",
    }
    there = Cluster(folder, environ)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_network(hosts))
        stack.callback(lambda: [there.lose(number) for number in list(there.nodes)])
        there.head()
        yield there


@contextmanager
def _network(hosts: int) -> Iterator[None]:
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # names and addresses are the machine's: one at a time
        _clear()
        try:
            _lay(hosts)
            yield
        finally:
            _clear()


def _lay(hosts: int) -> None:
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for number in range(hosts):
        name, end = _namespace(number), f"{WIRE}{number}"
        _ip("netns", "add", name)
        _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", end, "master", BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{_host(number)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _clear() -> None:
    """Removes the hosts and their network, also those of a test that was killed."""
    # The wires first: a host takes its own with it, but only some time after its name has gone.
    for link in json.loads(_ip("-json", "link", "show")):
        if re.fullmatch(rf"{BRIDGE}|{WIRE}\d+", link["ifname"]):
            _ip("link", "del", link["ifname"])
    for host in json.loads(_ip("-json", "netns", "list") or "[]"):
        if re.fullmatch(rf"{HOST}\d+", host["name"]):
            for pid in _ip("netns", "pids", host["name"]).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", host["name"])
