"""Control: the one actor that the driver and the stages talk through.

The rows of each block and a stop flag come from the driver, progress and attempts from the stages.
It lives on the driver's machine, where the rows are, and nothing in it is needed to resume: if it
dies, it begins anew.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pnp_batch.attempts import Attempts, Verdict
from pnp_batch.listing import RowFile
from pnp_batch.metrics import WORKER_MS, Metrics

# A worker that was silent for longer is none any more.
BEAT_SECONDS, SILENT_SECONDS = 5.0, 15.0


class Blocks(Protocol):
    """Rows in blocks."""

    @property
    def path(self) -> str:
        """Of the file with the rows of the job, on the driver's machine."""

    def __len__(self) -> int:
        """How many blocks."""

    def rows(self, file: RowFile, number: int) -> pa.Table:
        """The rows of a block, of which `file` holds what the job knows."""


@dataclass(frozen=True)
class Seen:
    """What Control knows: counts since it was `born`, what is in flight, the oldest first, and how
    many workers there are."""

    born: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    in_flight: tuple[str, ...] = ()
    workers: int = 0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Control:
    """What the driver and the stages tell each other."""

    def __init__(self, blocks: Blocks, metrics: tuple[str, int] | None) -> None:
        self._blocks = blocks
        self._metrics = Metrics(*metrics) if metrics else None
        self._heard: dict[str, float] = {}
        self._file = RowFile(blocks.path)
        self._born = uuid.uuid4().hex
        self._counts: Counter[str] = Counter()
        self._attempts = Attempts()
        self._stopped = False

    def rows(self, block: int) -> pa.Table:
        """The rows of a block."""
        return self._blocks.rows(self._file, block)

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds to the counts."""
        self._counts.update(counts)
        if self._metrics:
            self._metrics.add(counts)

    def beat(self, worker: str, milliseconds: int) -> None:
        """Notes that a worker has been there for so long since it was last heard of."""
        self._heard[worker] = time.monotonic()
        self.add({WORKER_MS: milliseconds})

    def seen(self) -> Seen:
        """What there is to show."""
        since = time.monotonic() - SILENT_SECONDS
        self._heard = {worker: at for worker, at in self._heard.items() if at > since}
        if self._metrics:
            self._metrics.show(len(self._heard))
        in_flight = tuple(self._attempts.unended)
        return Seen(self._born, dict(self._counts), in_flight, len(self._heard))

    def stop(self) -> None:
        """Asks the stages to finish what is in flight and to begin nothing new."""
        self._stopped = True

    def stopped(self) -> bool:
        """True once asked to stop."""
        return self._stopped

    def verdict(self, names: Sequence[str]) -> Verdict:
        """How to go on with these, given what has become of them so far."""
        return self._attempts.verdict(names)

    def begin(self, names: Sequence[str], ended: Sequence[str] = ()) -> bool:
        """Notes that `ended` have ended and that `names` begin; False if nothing may begin."""
        self._attempts.end(ended)
        if not self._stopped:
            self._attempts.begin(names)
        return not self._stopped

    def end(self, names: Sequence[str]) -> None:
        """Notes that these have ended."""
        self._attempts.end(names)

    def expire(self, names: Sequence[str]) -> None:
        """Notes that these took too long."""
        self._attempts.expire(names)


def start(blocks: Blocks, metrics: tuple[str, int] | None = None) -> Any:  # noqa: ANN401
    """Starts Control on this machine, which the run cannot do without anyway; its handle.

    `metrics` are shown for a run with this output and so many rows.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Control.options(scheduling_strategy=here).remote(blocks, metrics)  # type: ignore[attr-defined]


def beat(control: Any) -> None:  # noqa: ANN401 - an actor handle
    """Tells Control from now on, for as long as this process lives, that it does."""

    def beating() -> None:
        worker, heard = uuid.uuid4().hex, time.monotonic()
        while True:
            now = time.monotonic()
            control.beat.remote(worker, round(1000 * (now - heard)))
            heard = now
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=beating, daemon=True).start()
