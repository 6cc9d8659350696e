"""The graph of an evaluation: recorded rows in, newer records of them with scores out.

rows without scores -> load (guidance images) -> Score (actors with the networks) -> ScoreSink
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from pnp_batch import results
from pnp_batch.digest import digests
from pnp_batch.listing import BYTES, Listing, RowFile
from pnp_batch.parts import parts, some_parts
from pnp_batch.scores import REASON, SCORED_WITH
from pnp_batch.stages import Score, ScoreSink, Scoring, loading
from pnp_batch.stages.score import RECORD

ROWS_A_BLOCK = 64


class Unscored:
    """The rows of a settled output that have still to be scored, in blocks of one part each.

    Attributes:
        path: of the manifest's rows, once `find` has been called.
        names: of the parts that the blocks are read from.
        total: rows with a picture, scored or not.
        count: rows in the blocks.
        schema: of their records, with scores.
    """

    path = ""

    def __init__(self, work: Scoring, *, again: bool = False) -> None:
        """Looks for them; `again` takes those that have been scored, too."""
        self.total = self.count = 0
        self._output = work.output
        self._blocks: list[tuple[str, np.ndarray]] = []
        self._held: tuple[str, pa.Table] = ("", pa.table({}))
        self.names = parts(work.output)
        schemas: list[pa.Schema] = []
        look = partial(_looked, keys=() if again else work.measures.keys.values())
        looked = some_parts(work.output, self.names, look)
        for name, (own, ok, missing) in zip(self.names, looked, strict=True):
            schemas.append(own)
            self.total += ok
            self.count += len(missing)
            cuts = range(ROWS_A_BLOCK, len(missing), ROWS_A_BLOCK)
            self._blocks += [(name, rows) for rows in np.split(missing, cuts) if len(rows)]
        scores = pa.schema([*((c, pa.float64()) for c in work.measures.columns), *_TOLD])
        self.schema = pa.unify_schemas([*schemas, scores], promote_options="default")

    def find(self, listing: Listing) -> None:
        """Notes where the rows are in a listing, which must outlive this."""
        self.path = listing.file.path
        self._order = np.argsort(listing.ids, kind="stable").astype(np.int32)
        self._ids = listing.ids[self._order]

    def __len__(self) -> int:
        return len(self._blocks)

    def rows(self, file: RowFile, number: int) -> pa.Table:
        """The rows of a block as `load` wants them, each with its record as one struct."""
        name, chosen = self._blocks[number]
        if self._held[0] != name:  # neighbouring blocks are of one part
            read = next(iter(some_parts(self._output, [name], pq.ParquetFile.read)))
            self._held = (name, pa.concat_tables([self.schema.empty_table(), read], **_FILLED))
        records = self._held[1].take(pa.array(chosen))
        place, there = self._places(digests(records["row_id"]))
        given = file.take(place, ["row_id", "guidance", "image", BYTES])
        problem = pa.array([None if here else NOT_LISTED for here in there], pa.string())
        given = given.append_column("problem", problem)
        return given.append_column(RECORD, records.to_struct_array())

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where rows stand in the listing, and whether they do."""
        near = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return self._order[near], self._ids[near] == ids


NOT_LISTED = "the manifest does not have this row any more"
_TOLD = ((REASON, pa.string()), (SCORED_WITH, pa.string()))
_FILLED: Mapping[str, Any] = {"promote_options": "default"}


def _looked(file: pq.ParquetFile, keys: Collection[str]) -> tuple[pa.Schema, int, np.ndarray]:
    """Of a part its schema, how many rows have a picture, and which of these lack scores.

    Without keys all of them do.
    """
    schema = file.schema_arrow
    known = [name for name in ("status", SCORED_WITH) if name in schema.names]
    table = file.read(columns=known, use_threads=False)
    ok = pc.equal(table["status"], results.OK).to_numpy()
    scored = np.full(len(table), bool(keys) and SCORED_WITH in known)
    for key in keys if scored.any() else ():
        has = pc.match_substring(table[SCORED_WITH], key)
        scored &= pc.fill_null(has, False).to_numpy()
    return schema, int(ok.sum()), np.flatnonzero(ok & ~scored).astype(np.int32)


class Evaluation:
    """Scores what has no scores yet."""

    doing = "scoring"
    metrics = None

    def __init__(self, work: Scoring, unscored: Unscored, workers: int, gpus: float) -> None:
        self._work = work
        self._unscored = unscored
        self.workers = workers
        self._gpus = gpus

    def blocks(self) -> Unscored:
        """The rows to score."""
        return self._unscored

    def run(self, data: ray.data.Dataset, control: Any, count: int) -> None:  # noqa: ANN401
        """Scores the blocks that `data` numbers, so many."""
        data = loading(data, self._work.reading, control).map_batches(
            Score,
            fn_constructor_kwargs={"work": self._work, "control": control},
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(
                size=min(self.workers, count), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=self._gpus or None,
        )
        sink = ScoreSink(self._work.output, control)
        data.write_datasink(sink, ray_remote_args={"num_cpus": 0.5})
