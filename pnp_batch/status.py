"""Status: an output in, how far it is out, also while a run on another machine writes it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pnp_batch import given, record, results
from pnp_batch.record import Record
from pnp_batch.results import Failure, Recorded
from pnp_batch.storage import Storage

SILENT_SECONDS = 60.0
STALLED = "stalled"


@dataclass(frozen=True)
class Status:
    """Where an output stands.

    Attributes:
        state: `running`, `done`, `interrupted`, `stopped`, `broken`; `stalled` if a run says that
            it runs but has written nothing for a minute.
        command: what runs the job again, or the rest of it.
        rate: rows a second of the latest run, None before it has any.
        eta_seconds: time left at that rate, None when it does not run.
    """

    output: str
    state: str
    rows: int
    done: int
    failed: int
    rate: float | None
    eta_seconds: float | None
    started_at: str
    updated_at: str
    failures: tuple[Failure, ...]
    command: str

    @property
    def missing(self) -> int:
        """Rows that are not recorded yet."""
        return max(0, self.rows - self.done - self.failed)


def status(uri: str) -> Status:
    """Reads the status of an output.

    Raises:
        InvalidConfig: there is no run at `uri`.
    """
    output = Storage(uri)
    there = record.of_run(uri)
    recorded = results.recorded(output)
    summary = recorded.summary()
    rate = _rate(there, recorded)
    state = there.state
    silent = (datetime.now(UTC) - datetime.fromisoformat(there.updated_at)).total_seconds()
    if state == record.RUNNING and silent > SILENT_SECONDS:
        state = STALLED
    left = max(0, there.rows - summary.done - summary.failed)
    return Status(
        output=output.uri,
        state=state,
        rows=there.rows,
        done=summary.done,
        failed=summary.failed,
        rate=rate,
        eta_seconds=left / rate if rate and state == record.RUNNING else None,
        started_at=there.started_at,
        updated_at=there.updated_at,
        failures=summary.failures,
        command=shlex.join(["pnp-batch", *given.command(there.as_config(uri))]),
    )


def _rate(there: Record, recorded: Recorded) -> float | None:
    started = datetime.fromisoformat(there.started_at)
    since = (started - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    times = recorded.times[recorded.times >= since]
    seconds = (times.max() - since) / 1e6 if len(times) else 0.0
    return float(len(times) / seconds) if seconds > 0 else None
