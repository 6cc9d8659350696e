"""Metrics of a run for Prometheus: what Control counts in, Ray's endpoint out.

Every node of a cluster serves them with Ray's own, which puts `ray_` before each name; each has the
run's output for a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from pnp_batch import results

FAILED = "failed: "
ORIGINS = {"cached": "cached", "inverted": "made"}
WORKER_MS = "worker_ms"
# Counts in milliseconds -> a metric in seconds.
SECONDS = {
    WORKER_MS: (
        "pnp_batch_worker_seconds_total",
        "Seconds that workers were there, which GPUs are paid for",
    ),
    "unet_ms": ("pnp_batch_unet_seconds_total", "Seconds that workers have spent in the UNet"),
    "work_ms": ("pnp_batch_work_seconds_total", "Seconds that workers have worked on rows"),
    "wait_ms": ("pnp_batch_wait_seconds_total", "Seconds that workers have waited for rows"),
}
ROWS, DONE = "pnp_batch_rows", "pnp_batch_rows_done_total"
FAILURES, INVERSIONS = "pnp_batch_rows_failed_total", "pnp_batch_inversions_total"
WORKERS = "pnp_batch_workers"
NAMES = (ROWS, DONE, FAILURES, INVERSIONS, WORKERS, *(name for name, _ in SECONDS.values()))


class Metrics:
    """The metrics of one run, told where its counts are added up."""

    def __init__(self, output: str, rows: int) -> None:
        label = {"output": output}

        def counter(name: str, told: str, *keys: str) -> Any:  # noqa: ANN401
            made = Counter(name, told, ("output", *keys))
            made.set_default_tags(label)
            return made

        self._done = counter(DONE, "Rows translated")
        self._failed = counter(FAILURES, "Rows that failed, by error_type", "kind")
        self._inversions = counter(INVERSIONS, "Inversions, found in the cache or made", "origin")
        self._seconds = {count: counter(*named) for count, named in SECONDS.items()}
        self._rows = Gauge(ROWS, "Rows that the run has to do", ("output",))
        self._workers = Gauge(WORKERS, "Workers that have rows or wait for some", ("output",))
        for gauge in (self._rows, self._workers):
            gauge.set_default_tags(label)
        self._rows_to_do = rows

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds what was counted."""
        for name, count in counts.items():
            if count <= 0:
                continue
            if name == results.OK:
                self._done.inc(count)
            elif name.startswith(FAILED):
                self._failed.inc(count, {"kind": name.removeprefix(FAILED)})
            elif name in ORIGINS:
                self._inversions.inc(count, {"origin": ORIGINS[name]})
            elif name in self._seconds:
                self._seconds[name].inc(count / 1000)

    def show(self, workers: int) -> None:
        """Tells what is now: to be repeated, as Ray forgets what was told once."""
        self._rows.set(self._rows_to_do)
        self._workers.set(workers)
