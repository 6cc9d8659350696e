"""Control: the one actor that the driver and the stages talk through.

The rows of each block and a stop flag come from the driver, progress and attempts from the stages.
It lives on the driver's machine, where the rows are, and nothing in it is needed to resume: if it
dies, it begins anew.
"""

from __future__ import annotations

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
    """What Control knows: counts since it was `born`, and what is in flight, the oldest first."""

    born: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    in_flight: tuple[str, ...] = ()


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Control:
    """What the driver and the stages tell each other."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
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

    def seen(self) -> Seen:
        """What there is to show."""
        return Seen(self._born, dict(self._counts), tuple(self._attempts.unended))

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


def start(blocks: Blocks) -> Any:  # noqa: ANN401 - an actor handle
    """Starts Control on this machine, which the run cannot do without anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Control.options(scheduling_strategy=here).remote(blocks)  # type: ignore[attr-defined]
