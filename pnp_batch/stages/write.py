"""The last stage: translated rows in, images on storage, and then their record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from pnp_batch import sink
from pnp_batch.metrics import FAILED
from pnp_batch.stages.work import PARTS, Work


class Sink(Datasink[None]):
    """Writes what a task got: its images, then the file that records its rows."""

    def __init__(self, work: Work, control: Any) -> None:  # noqa: ANN401 - an actor handle
        self._work = work
        self._control = control

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:  # noqa: ANN401 - Ray's context
        """Writes the blocks of one task."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return
        work = self._work
        digest = work.model.digest if work.provenance else None
        recorded = sink.write(
            pa.concat_tables(tables),
            work.output,
            work.image_format,
            work.schema,
            digest,
            work.sink,
        )
        counts: Counter[str] = Counter(recorded["status"].to_pylist())
        kinds = recorded["error_type"].drop_null().to_pylist()
        counts.update(f"{FAILED}{kind}" for kind in kinds)
        counts[PARTS] = 1
        # Waited for, so that no count is lost when the run ends right after.
        ray.get(self._control.add.remote(dict(counts)))
