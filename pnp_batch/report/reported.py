"""Outputs as a report tells of them: their URIs in; their records, rows to show and scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch import manifest, methods, record, results, rows
from pnp_batch.config import RunConfig
from pnp_batch.digest import digests
from pnp_batch.errors import JobError
from pnp_batch.manifest import Manifest
from pnp_batch.record import Record
from pnp_batch.recorded import Recorded, gathered
from pnp_batch.report.cost import COUNTED
from pnp_batch.scores import REASON, SCORES
from pnp_batch.storage import Storage

# Failed rows that are shown beside those asked for, wherever in the output they stand.
FAILED = 1_000
NAMES = tuple(score.name for score in SCORES)
_OWN = {*results.SCHEMA.names, *NAMES, REASON, "scored_with"}
_PLAIN = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean),
    *(pa.types.is_integer, pa.types.is_floating),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Reported:
    """An output in a report.

    Attributes:
        name: short, and unlike those of the others.
        config: the job that made it.
        recorded: the index of its rows.
        table: of all its rows the columns that are counted, and their scores.
        scores: names of those scores that a row has.
        manifest: None where it cannot be read any more; `problem` says why.
        order: digests of the ids of the manifest's first rows.
    """

    name: str
    storage: Storage
    there: Record
    config: RunConfig
    recorded: Recorded
    table: pa.Table
    scores: tuple[str, ...]
    manifest: Manifest | None
    problem: str
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def extra(self) -> list[str]:
        """The manifest's own columns that hold plain values."""
        fields = [f for f in self.recorded.records.schema if f.name not in _OWN]
        return [f.name for f in fields if any(is_kind(f.type) for is_kind in _PLAIN)]

    def rows(self, limit: int) -> list[Row]:
        """Recorded rows to show: so many, the manifest's first ones where it can be read, and
        failed ones, in the order of the manifest or else of the records."""
        every = np.argsort(self.recorded.numbers, kind="stable")
        first = self.recorded.entries(self.order[:limit])
        rest = every[~np.isin(every, first)][: limit - len(first)]
        failed = every[~self.recorded.ok[every]][:FAILED]
        entries = np.unique(np.concatenate([first, rest, failed]))
        columns = [*results.SCHEMA.names, *self.scores, REASON, *self.extra]
        found = self.recorded.rows(entries, columns)
        place = {int(digest): number for number, digest in enumerate(self.order)}
        numbers = digests(pa.array([row["row_id"] for row in found], pa.string())).tolist()
        last = len(place)
        ordered = sorted(range(len(found)), key=lambda n: place.get(numbers[n], last))
        return [found[number] for number in ordered]


def reported(uris: Sequence[str], limit: int, names: Sequence[str] = ()) -> list[Reported]:
    """Reads the outputs at these URIs, each once.

    Args:
        uris: of outputs.
        limit: rows of each that will be shown.
        names: of the outputs; if empty, the last parts of their URIs.

    Raises:
        InvalidConfig: there is no run at one of them.
    """
    storages = list({Storage(uri).uri: Storage(uri) for uri in uris}.values())
    named = names or _short([storage.uri for storage in storages])
    return [_opened(s, name, limit) for s, name in zip(storages, named, strict=True)]


def _opened(storage: Storage, name: str, limit: int) -> Reported:
    there = record.of_run(storage.uri)
    config = there.as_config(storage.uri)
    recorded, tables = gathered(storage, [*COUNTED, *NAMES])
    table = pa.table({c: pa.array([], results.SCHEMA.field(c).type) for c in COUNTED})
    if tables:
        joined = pa.concat_tables(tables, promote_options="default")
        table = joined.filter(pa.array(recorded.counting()))
    scores = tuple(n for n in NAMES if n in table.column_names and table[n].null_count < len(table))
    read, order, problem = None, np.zeros(0, np.uint64), ""
    try:
        read = manifest.read(config.manifest)
        order = _order(read, config, limit)
    except JobError as error:  # the page is of the output, which needs no manifest any more
        problem = str(error)
    return Reported(
        name, storage, there, config, recorded, table, scores, read, problem, order
    )  # fmt: skip


def _order(read: Manifest, config: RunConfig, limit: int) -> np.ndarray:
    found, count = [np.zeros(0, np.uint64)], 0
    for table in rows.expand(read, config, methods.KNOWN):
        found.append(digests(table["row_id"].slice(0, limit - count)))
        count += len(found[-1])
        if count >= limit:
            break
    return np.concatenate(found)


def _short(uris: Sequence[str]) -> list[str]:
    """The last part of each URI that the others do not share, or all of it."""
    short = [PurePosixPath(uri).name or uri for uri in uris]
    return [n if short.count(n) == 1 else uri for n, uri in zip(short, uris, strict=True)]
