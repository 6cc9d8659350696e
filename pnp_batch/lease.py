"""The lease: who is writing to an output now. A crashed holder loses it.

In: an output. Out: `held`, which refuses or waits while another run writes there. The lease saves
work; correctness does not hang on it: results and images of two writers are the same bytes, and
records that stand twice are settled.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pnp_batch.errors import JobError
from pnp_batch.process import machine, runs
from pnp_batch.storage import Storage, StorageUnavailable

NAME = "lease.json"
RENEW_SECONDS = 10.0
EXPIRES_SECONDS = 60.0
# Two who take over a dead lease at the same moment: the later write stands, the other sees it.
SETTLE_SECONDS = 1.0
POLL_SECONDS = 1.0
# A lease that is left behind keeps runs on other machines waiting: worth trying for a while.
RELEASE_PATIENCE = 30.0


class OutputBusy(JobError):
    """Another run is writing to the output."""


class LeaseLost(JobError):
    """Another run has taken over the output, as this one was silent for too long."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as `lease.json` says it."""

    id: str
    host: str
    pid: int
    machine: str
    renewed_at: str

    @classmethod
    def this_process(cls) -> Holder:
        """This process as a new holder."""
        return cls(uuid.uuid4().hex, platform.node(), os.getpid(), machine(), _now())

    @property
    def is_dead(self) -> bool:
        """True when it was silent for too long, or was a process of this machine and is gone."""
        silent = datetime.now(UTC) - datetime.fromisoformat(self.renewed_at)
        if silent.total_seconds() > EXPIRES_SECONDS:
            return True
        return self.machine == machine() and not runs(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, last heard of at {self.renewed_at}"


def holder(output: Storage) -> Holder | None:
    """Who holds the lease of an output, dead or alive; None if nobody or if it cannot be read."""
    data = output.read_if_there(NAME)
    try:
        return None if data is None else Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def is_held(output: Storage) -> bool:
    """True while somebody alive writes to the output."""
    there = holder(output)
    return there is not None and not there.is_dead


class Lease:
    """A lease that this process holds and renews until it is released or lost."""

    def __init__(self, output: Storage, mine: Holder, *, waited: bool) -> None:
        self._output = output
        self._mine = mine
        self.waited = waited
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="pnp-batch-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `LeaseLost` once another run has taken over."""
        if self.lost:
            raise LeaseLost(
                f"another run has taken over {self._output.uri}, as this one was silent for more "
                f"than {EXPIRES_SECONDS:g} s",
                "let that one go on; `pnp-batch status` shows how far it is",
            )

    def release(self) -> None:
        """Gives the output free, if it is still ours."""
        self._ended.set()
        self._thread.join()
        output = Storage(self._output.uri, RELEASE_PATIENCE)
        with suppress(StorageUnavailable):  # then it expires
            there = holder(output)
            if there is not None and there.id == self._mine.id:
                output.delete(NAME)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                there = holder(self._output)
                if there is not None and there.id != self._mine.id:
                    self.lost = True
                    return
                self._output.write(NAME, _body(replace(self._mine, renewed_at=_now())))
            except StorageUnavailable:
                continue  # who cannot write cannot take over either


@contextmanager
def held(
    output: Storage, *, wait: bool, waiting: Callable[[], None] = lambda: None
) -> Iterator[Lease]:
    """Holds the lease of an output for the length of a `with` block.

    Args:
        output: the output.
        wait: wait until whoever holds it now has ended.
        waiting: called every second while it waits.

    Raises:
        OutputBusy: another run is writing there, and `wait` is False.
    """
    lease = _acquired(output, wait, waiting)
    try:
        yield lease
    finally:
        lease.release()


def _acquired(output: Storage, wait: bool, waiting: Callable[[], None]) -> Lease:
    mine, waited = Holder.this_process(), False
    while True:
        mine = replace(mine, renewed_at=_now())
        if output.create(NAME, _body(mine)):
            return Lease(output, mine, waited=waited)
        there = holder(output)
        if there is None or there.is_dead:
            output.write(NAME, _body(mine))
            time.sleep(SETTLE_SECONDS)
            now = holder(output)
            if now is not None and now.id == mine.id:
                return Lease(output, mine, waited=waited)
        elif not wait:
            raise OutputBusy(
                f"another run is writing to {output.uri}: {there}",
                "wait for it with --wait, or use another --output; if it is dead, its place is "
                f"free {EXPIRES_SECONDS:g} s after it was last heard of",
            )
        waiting()
        waited = True
        time.sleep(POLL_SECONDS)


def _body(mine: Holder) -> bytes:
    return (json.dumps(asdict(mine), indent=2) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
