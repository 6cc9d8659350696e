"""P11: a cluster of two nodes loses one; what was in flight there is done by the other.

Both nodes are on this machine, behind a token. Each is a session of processes of its own, killed at
one stroke. The driver is attached to the first, whose address it has; the second is lost.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq

from tests import tiny
from tests.faults import jobs
from tests.faults.kills import of_copies
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.promise import Outcome
from tests.faults.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

Node = subprocess.Popen[bytes]
ROWS, LONG_ROWS, ROUNDS = 3_000, 400, 3
# So that a silent node counts as lost after seconds.
HASTE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
}
ADDRESSES = ("127.0.0.1", "127.0.0.2")
NODE_FLAGS = ("--num-cpus", "4", "--object-store-memory", str(2**28))
PORTS = ("--min-worker-port", "0", "--max-worker-port", "0")


def experiment(folder: Path, long: bool) -> Outcome:
    """`copy` with one node lost; in the long form with a tiny model as well, and more often."""
    copies = ("--method", "copy", "--batch-size", "2", "--workers", "2")
    outcomes = [lost_midway(folder / "copy", ROWS, copies)]
    if long:
        model = tiny.save_model(folder / "model", "sd1")
        flags = ("--model", str(model), "--steps", "10", "--batch-size", "2", "--workers", "2")
        for number in range(ROUNDS):
            outcomes.append(lost_midway(folder / f"tiny-{number}", LONG_ROWS, flags))
    findings = tuple(finding for outcome in outcomes for finding in outcome.findings)
    rows = sum(outcome.rows for outcome in outcomes)
    return Outcome(len(outcomes), len(outcomes), rows, findings)


def lost_midway(folder: Path, rows: int, flags: tuple[str, ...]) -> Outcome:
    """One run on two nodes; the second is killed once both have a worker and rows are recorded."""
    folder.mkdir()
    manifest, findings = jobs.manifest(folder / "manifest.parquet", rows), []
    with two_nodes() as (address, environ, nodes):
        flags = (*flags, "--address", address)
        job = jobs.Job(manifest, str(folder / "output"), flags, environ)
        with job.started() as running:
            running.wait_for_rows(1)
            if not _both_work(running, nodes):
                findings.append(f"the work did not spread: {running.told()}")
            kill(nodes[1])
            if len(jobs.recorded(job.seen)) == len(row_ids(manifest)):
                findings.append("the run had ended before the node was lost")
            code = running.wait()
            findings += [f"the run ended with {code}: {running.told()}"] if code else []
    findings += judge(job.seen, Expectation(row_ids(manifest), may_fail=()))
    if "copy" in flags and not findings:
        findings += of_copies(manifest, job.seen)
    return Outcome(1, 1, pq.read_metadata(manifest).num_rows, tuple(findings))


def _both_work(running: jobs.Running, nodes: list[Node]) -> bool:
    """Waits until each node has a worker; False if the run ends before that."""
    while running.driver.poll() is None:
        if [has(node, jobs.TRANSLATOR) for node in nodes] == [1, 1]:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def two_nodes() -> Iterator[tuple[str, dict[str, str], list[Node]]]:
    """A Ray cluster of two nodes that only a token opens: address, environment, nodes."""
    folder = Path(tempfile.mkdtemp(prefix="pf-"))
    environ = of_cluster(folder)
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    head = ("--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir")
    second = ("--address", address)
    try:
        with ExitStack() as stack:
            nodes = []
            for own, flags in zip(ADDRESSES, ((*head, str(folder / "ray")), second), strict=True):
                nodes.append(_node((*flags, "--node-ip-address", own), folder, environ))
                stack.callback(kill, nodes[-1])
            wait_for_nodes(address, environ, len(nodes))
            yield address, environ, nodes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def of_cluster(folder: Path) -> dict[str, str]:
    """The environment of a cluster's nodes and of whom it lets in, by a token in this folder."""
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A private Ray keeps to loopback by a setting that nodes of a cluster must not inherit.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        **HASTE,
    }


def _node(flags: tuple[str, ...], folder: Path, environ: dict[str, str]) -> Node:
    """Starts a node as a session of processes, and returns its leader."""
    return start_node((), (*flags, *NODE_FLAGS), folder / "told", environ)


def start_node(
    within: tuple[str, ...], flags: tuple[str, ...], told: Path, environ: dict[str, str]
) -> Node:
    """`ray start` as a session of processes, `within` a command; its leader, once it has a raylet.

    What it says is added to the file `told`.
    """
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *flags, *PORTS]
    with told.open("a") as file:
        node = subprocess.Popen(
            [*within, *ray],
            stdout=file,
            stderr=file,
            env={**os.environ, **environ},
            start_new_session=True,
        )
    deadline = time.monotonic() + jobs.PATIENCE
    while not has(node, jobs.RAYLET):
        if time.monotonic() > deadline or node.poll() is not None:
            kill(node)
            raise TimeoutError(f"no Ray: {told.read_text()}")
        time.sleep(0.2)
    return node


def wait_for_nodes(address: str, environ: dict[str, str], count: int) -> None:
    """Returns once a cluster has so many nodes; one joins well after its processes have begun."""
    ray = [str(Path(sys.executable).with_name("ray")), "status", "--address", address]
    deadline, told = time.monotonic() + jobs.PATIENCE, ""
    while len(re.findall(r"(?m)^ 1 node_", told)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {count} nodes: {told}")
        told = subprocess.run(
            ray, check=False, capture_output=True, text=True, env={**os.environ, **environ}
        ).stdout


def has(node: Node, role: str) -> int:
    """How many processes of a node have a role."""
    there = jobs.of_session(node.pid).items()
    return sum(len(some) for name, some in there if re.fullmatch(role, name))


def kill(node: Node) -> None:
    """All of a node at one stroke, and what it may have started meanwhile."""
    while left := [process for some in jobs.of_session(node.pid).values() for process in some]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=1)
    node.wait()
