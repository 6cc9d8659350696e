"""Compaction: the many small parts that a run writes in, few whole ones out, while it goes on.

A run of days would else leave millions of files, which every `status` and every resume reads. What
is merged stands in its new part before the old ones go, so a kill at any moment, another driver or
a reader meets a record once or twice and never not at all; `results.settle` leaves it once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from types import TracebackType

import numpy as np
import pyarrow as pa

from pnp_batch.errors import JobError
from pnp_batch.parts import (
    ROWS_A_GROUP,
    WHOLE_BYTES,
    PartGone,
    delete_parts,
    small_parts,
    some_parts,
    write_merged,
)
from pnp_batch.process import trim_memory
from pnp_batch.storage import Storage

# Parts that are not whole and are worth a listing and a merge: a reader reads them in a second.
WORTH = 256
# Of a merge, whose files are in memory together: one that is nearly whole has room among others.
MOST_BYTES = 3 * WHOLE_BYTES
# How long a run that breaks waits for a merge. It may be killed as well.
ENDING_SECONDS = 3.0
logger = logging.getLogger(__name__)


def due(small: Mapping[str, int]) -> list[str]:
    """Which parts to merge now, of all that are not whole, by their names and bytes; often none.

    The smallest ones, up to one that is not larger than all smaller ones together: a record is
    written again only into a part about twice as large, so a few times until that is whole.
    """
    if len(small) < WORTH:
        return []
    names = sorted(small, key=lambda name: (small[name], name))
    together = np.cumsum([small[name] for name in names])
    worth = np.diff(together) <= together[:-1]
    fitting = np.flatnonzero(worth & (together[1:] <= MOST_BYTES))
    return names[: fitting[-1] + 2] if len(fitting) else []


def merge(storage: Storage, names: Collection[str]) -> None:
    """Puts the records of some parts, none left out, into new parts, then removes the old ones.

    Raises:
        PartGone: somebody else has merged one of them; nothing was removed.
        StorageUnavailable: a part is damaged, or cannot be read, written or removed.
    """
    files = list(some_parts(storage, names, lambda file: file))
    schema = pa.unify_schemas([file.schema_arrow for file in files], promote_options="default")
    tables = (
        pa.Table.from_batches([batch])
        for file in files
        for batch in file.iter_batches(ROWS_A_GROUP, use_threads=False)
    )
    write_merged(storage, tables, schema)
    delete_parts(storage, names)


class Compaction:
    """Merges behind whoever watches a run; a context manager, at whose end nothing is going on.

    Args:
        storage: the output.
        spared: parts that somebody still wants to read by their names.
    """

    def __init__(self, storage: Storage, spared: Collection[str] = ()) -> None:
        self._storage = storage
        self._spared = frozenset(spared)
        self._seen: int | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Compaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.wait(None if error is None else ENDING_SECONDS)

    def wait(self, seconds: float | None = None) -> None:
        """Waits until nothing is being merged, so many seconds at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def look(self, written: int) -> None:
        """Begins to merge if that may be worth it, and returns at once.

        Parts are listed the first time, then after `WORTH` new ones: a store asks money for it.

        Args:
            written: how many parts the run has written so far.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        if self._seen is None or written - self._seen >= WORTH:
            self._seen = written
            self._thread = threading.Thread(target=self._run, name="pnp-batch-merge", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.is_set() and (names := due(self._listed())):
                merge(self._storage, names)
                trim_memory()
        except PartGone:
            pass  # another driver merges too: whoever of the two is to go on looks again
        except JobError as error:
            # The run itself fails where its storage does; a damaged part is named at its end.
            logger.warning("results are not merged now: %s", error)

    def _listed(self) -> dict[str, int]:
        there = small_parts(self._storage).items()
        return {name: size for name, size in there if name not in self._spared}
