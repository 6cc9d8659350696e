"""Ray: a private local instance or an existing cluster, for the length of a `with` block."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from pnp_batch.process import MANY_NODES, SUBMITTED, elsewhere, temporary_folder

# Ray reads these when it is imported. A private instance then binds every socket to loopback.
os.environ.setdefault(MANY_NODES, "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A run that was stopped at once must not start Ray again from its dying thread.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray's C++ layer reports as errors what its own retries mend; what matters arrives as exceptions.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray Data asks an autoscaler for nodes only while more than this share of the CPUs is taken: one
# actor on a node of three or more would never get company. A run says itself how many it may have.
os.environ.setdefault("RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_CPU_UTIL_THRESHOLD", "0")
# Threads that spin while they wait cost actors on a busy machine most of their time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ray
from ray._private import utils
from ray.data import DataContext

from pnp_batch.errors import JobError

OBJECT_STORE_BYTES = 512 * 2**20
ACTOR_INIT_DEATHS = 3
RAY_LISTENER = "ray_listen_error_messages"
# Loading and writing need CPUs of their own beside the actors, or the graph may starve.
SPARE_CPUS = 3


class ClusterUnavailable(JobError):
    """No Ray to run on."""


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[None]:
    """Connects to a cluster, or starts a private local one that is gone afterwards.

    Args:
        address: of an existing cluster, None for a private local one; that of a dashboard in a job
            that was submitted there.
        workers: actors that the private one must have room for.

    Raises:
        ClusterUnavailable: it cannot be reached or started.
    """
    if ray.is_initialized():  # the caller's own: used as it is, and left as it is
        _quiet()
        with _without_ray_on_stdout():
            yield
        return
    if elsewhere(address):
        raise ClusterUnavailable(
            f"{address} is the address of a dashboard, which jobs are submitted to",
            "use `pnp-batch submit`, or the address of the cluster itself, as HOST:6379",
        )
    folder = None if address else temporary_folder()
    try:
        try:
            with _without_native_stderr():
                _start(address, folder, workers or 1)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address}" if address else "a local Ray"
            raise ClusterUnavailable(
                f"cannot connect to {where}: {str(error).splitlines()[0]}",
                "check the address with `ray status --address ADDR`"
                if address
                else "check free memory and disk with `pnp-batch doctor`",
            ) from error
        _quiet()
        with _without_ray_on_stdout():
            yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(address: str | None, folder: str | None, workers: int) -> None:
    if address:
        if SUBMITTED in os.environ:
            address = "auto"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
    with unobserved():
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers) + SPARE_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )


@contextmanager
def unobserved() -> Iterator[None]:
    """Starts Ray without what shows a cluster to others: two servers that nobody asks here.

    They would take seconds of each start, and listen. Ray leaves them out where their packages are
    missing, and has no setting for it.
    """
    found = utils.get_dashboard_dependency_error
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = found


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Keeps what C++ writes at start-up, such as the log level it was given, off the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Filtered(io.TextIOBase):
    """Standard output without what Ray's own thread prints there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what anybody else says."""
        listening = threading.current_thread().name == RAY_LISTENER
        return len(text) if listening else self._stream.write(text)

    def flush(self) -> None:
        """Flushes the stream below."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else the stream has
        return getattr(self._stream, name)


@contextmanager
def _without_ray_on_stdout() -> Iterator[None]:
    """Standard output is the command's answer; Ray reports on it what its daemons see.

    What matters of that, such as dead workers, the run's own progress tells.
    """
    with redirect_stdout(_Filtered(sys.stdout)):
        yield


def _quiet() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A pool with room to grow does once all of its actors work, and keeps those it has: each has
    # loaded the model.
    scaling = context.autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = 1.0
    scaling.actor_pool_util_downscaling_threshold = 0.0
    context.max_consecutive_actor_init_deaths = ACTOR_INIT_DEATHS
    context.execution_no_progress_timeout_s = -1  # a row has its own limit, which may be longer
    for name in ("ray", "ray.data"):  # what ends a run arrives as an exception, too
        logging.getLogger(name).setLevel(logging.CRITICAL)


def cores() -> int:
    """CPUs of the connected cluster that actors may have."""
    return max(1, int(ray.cluster_resources().get("CPU", 1.0)) - SPARE_CPUS)


def threads(workers: int) -> int:
    """Threads of each of so many actors that compute on CPUs.

    One core is left to what reads, writes and watches: threads that wait for one of theirs that has
    lost its core take several times as long.
    """
    return max(1, (cores() - 1) // workers)


def gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))
