"""What an output has recorded: all its parts in, an index of a few bytes a row out.

A row may be recorded more than once, as when a failed one was done again. Here, and nowhere else,
it is decided which record of a row counts: an ok one if there is any, of these the latest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pnp_batch.digest import digests
from pnp_batch.parts import ROWS_A_GROUP, PartGone, every_part, some_parts
from pnp_batch.process import trim_memory
from pnp_batch.storage import Storage

OK = "ok"
ERROR = "error"
_INDEXED = ("row_id", "row_hash", "status", "error_type", "recorded_at")
_WIDTHS = {"ids": np.uint64, "hashes": np.uint64, "times": np.int64, "kinds": np.int16}
# What decoding leaves behind is given back after so many records.
ROWS_A_TRIM = 50_000
# The kind of error that an ok row has, and the time of a record that has none.
_NO_ERROR, _NEVER = -1, np.iinfo(np.int64).min


@dataclass(frozen=True)
class Failure:
    """One kind of failure: how many rows, and the first of them as an example."""

    error_type: str
    count: int
    row_id: str
    message: str


@dataclass(frozen=True)
class Summary:
    """What the results of an output say together."""

    done: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = field(default=())


@dataclass(frozen=True)
class Records:
    """Where records lie: numbered through the parts, in the order in which these were read.

    Attributes:
        names: of the parts.
        starts: the number of the first record of each part; at its end, of records in all.
        kinds: of errors, by their codes.
        schema: of all parts together.
    """

    storage: Storage
    names: list[str]
    starts: np.ndarray
    kinds: list[str]
    schema: pa.Schema

    def rows(self, numbers: np.ndarray, columns: list[str]) -> list[dict[str, Any]]:
        """Some records by their numbers. Raises `PartGone`."""
        part = np.searchsorted(self.starts, numbers, side="right") - 1
        wanted = np.unique(part).tolist()
        read = partial(pq.ParquetFile.read, columns=columns, use_threads=False)
        rows: dict[int, dict[str, Any]] = {}
        tables = some_parts(self.storage, [self.names[number] for number in wanted], read)
        for number, table in zip(wanted, tables, strict=True):
            mine = numbers[part == number]
            found = table.take(pa.array(mine - self.starts[number])).to_pylist()
            rows.update(zip(mine.tolist(), found, strict=True))
        return [rows[number] for number in numbers.tolist()]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Of each row of an output the record that counts.

    Records of one id's digest are of one row. No two rows of an output share a digest, as a
    listing refuses the manifest, one in forty million of a million rows, that has such ids.

    Attributes:
        ids: uint64, digests of `row_id`, ascending, each once.
        hashes: uint64, digests of `row_hash`.
        times: int64, microseconds since 1970 at which they were recorded.
        ok: bool; False for rows that have failed.
        kinds: int16, codes of `records.kinds`; negative where `ok`.
        numbers: int64, of their record among all of `records`.
        records: the parts that they stand in.
    """

    ids: np.ndarray
    hashes: np.ndarray
    times: np.ndarray
    ok: np.ndarray
    kinds: np.ndarray
    numbers: np.ndarray
    records: Records

    def __len__(self) -> int:
        return len(self.ids)

    def summary(self, chosen: np.ndarray | None = None) -> Summary:
        """Counts the rows that a mask chooses, or all, with the first failure of each kind.

        Those are read from their parts now. Where a run has settled since, so that the parts have
        gone, the summary is what is recorded of the same rows now.
        """
        chosen = np.ones(len(self), bool) if chosen is None else chosen
        bad = chosen & ~self.ok
        kinds = self.kinds[bad]
        counts = np.bincount(kinds, minlength=len(self.records.kinds))
        firsts = np.full(len(counts), self.records.starts[-1])
        np.minimum.at(firsts, kinds, self.numbers[bad])
        codes = np.flatnonzero(counts)
        codes = codes[np.lexsort((firsts[codes], -counts[codes]))]
        try:
            examples = self.records.rows(firsts[codes], ["row_id", "error_message"])
        except PartGone:
            newer = recorded(self.records.storage)
            mask = np.zeros(len(newer), bool)
            mask[newer.entries(self.ids[chosen])] = True
            return newer.summary(mask)
        failures = []
        for code, row in zip(codes.tolist(), examples, strict=True):
            kind, count = self.records.kinds[code], int(counts[code])
            failures.append(Failure(kind, count, row["row_id"], row["error_message"] or ""))
        return Summary(int(chosen.sum() - bad.sum()), int(bad.sum()), tuple(failures))

    def names(self, entries: np.ndarray, most: int) -> list[str]:
        """The `row_id` of rows by their indices here, so many at most, in recorded order."""
        first = entries[np.argsort(self.numbers[entries])[:most]]
        return [row["row_id"] for row in self.rows(first, ["row_id"])]

    def rows(self, entries: np.ndarray, columns: list[str]) -> list[dict[str, Any]]:
        """Columns of rows by their indices here, in recorded order; read from their parts now."""
        try:
            return self.records.rows(np.sort(self.numbers[entries]), columns)
        except PartGone:
            newer = recorded(self.records.storage)
            return newer.rows(newer.entries(self.ids[entries]), columns)

    def entries(self, ids: np.ndarray) -> np.ndarray:
        """The indices here of those rows, by the digests of their ids, that are here."""
        near = np.searchsorted(self.ids, ids)
        inside = near < len(self)
        near, ids = near[inside], ids[inside]
        found: np.ndarray = near[self.ids[near] == ids]
        return found

    def counting(self) -> np.ndarray:
        """For each of the records whether it is the one that counts."""
        counting = np.zeros(self.records.starts[-1], bool)
        counting[self.numbers] = True
        return counting


def recorded(storage: Storage) -> Recorded:
    """What an output has recorded, also while a run is writing it."""
    return gathered(storage, ())[0]


def gathered(storage: Storage, columns: Sequence[str] | None) -> tuple[Recorded, list[pa.Table]]:
    """What an output has recorded, and columns of all records in their order; all if None."""
    index, tables, trimmed = _Index(), [], 0
    for name, (schema, groups) in every_part(storage, partial(_indexed, columns=columns)):
        index.add(name, schema, groups)
        if columns is None or columns:
            tables += [group.table for group in groups]
        del groups
        if len(index) >= trimmed + ROWS_A_TRIM:
            trim_memory()
            trimmed = len(index)
    return index.recorded(storage), tables


@dataclass(frozen=True)
class _Group:
    """Some records of a part: what the index holds of each, and the columns asked for.

    The codes of errors are indices of `kinds`.
    """

    ids: np.ndarray
    hashes: np.ndarray
    times: np.ndarray
    ok: np.ndarray
    codes: np.ndarray
    kinds: list[str]
    table: pa.Table


def _indexed(file: pq.ParquetFile, columns: Sequence[str] | None) -> tuple[pa.Schema, list[_Group]]:
    """A part's schema, and its records."""
    wanted = None if columns is None else list(dict.fromkeys((*columns, *_INDEXED)))
    batches = file.iter_batches(ROWS_A_GROUP, columns=wanted, use_threads=False)
    return file.schema_arrow, [_group(batch, columns) for batch in batches]


def _group(batch: pa.RecordBatch, columns: Sequence[str] | None) -> _Group:
    kinds = batch["error_type"].unique()
    asked = [name for name in columns or () if name in batch.schema.names]
    return _Group(
        ids=digests(batch["row_id"]),
        hashes=digests(batch["row_hash"]),
        times=batch["recorded_at"].cast(pa.int64()).fill_null(_NEVER).to_numpy(),
        ok=pc.equal(batch["status"], OK).to_numpy(zero_copy_only=False),
        codes=pc.index_in(batch["error_type"], kinds).to_numpy(),
        kinds=list(map(str, kinds.to_pylist())),
        table=pa.Table.from_batches([batch if columns is None else batch.select(asked)]),
    )


class _Index:
    """Records of fixed width as they come, in buffers that grow in place."""

    def __init__(self) -> None:
        self._buffers = {name: bytearray() for name in _WIDTHS}
        self._kinds: dict[str, int] = {}
        self._names: list[str] = []
        self._starts = [0]
        self._schema = pa.schema([])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def add(self, name: str, schema: pa.Schema, groups: list[_Group]) -> None:
        """Adds the records of a part."""
        for group in groups:
            codes = [self._kinds.setdefault(kind, len(self._kinds)) for kind in group.kinds]
            kinds = np.where(group.ok, _NO_ERROR, np.array(codes, np.int64)[group.codes])
            self._append(ids=group.ids, hashes=group.hashes, times=group.times, kinds=kinds)
        self._names.append(name)
        self._starts.append(self._starts[-1] + sum(len(group.ids) for group in groups))
        if schema != self._schema:
            self._schema = pa.unify_schemas([self._schema, schema], promote_options="default")

    def _append(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self._buffers[name] += array.astype(_WIDTHS[name], copy=False).tobytes()

    def recorded(self, storage: Storage) -> Recorded:
        """Of all records those that count. Empties this index on the way, to need less memory."""
        numbers = self._current()
        kinds = self._taken("kinds")[numbers]
        return Recorded(
            ids=self._taken("ids")[numbers],
            hashes=self._taken("hashes")[numbers],
            times=self._taken("times")[numbers],
            ok=kinds == _NO_ERROR,
            kinds=kinds,
            numbers=numbers,
            records=Records(
                storage, self._names, np.array(self._starts), list(self._kinds), self._schema
            ),
        )

    def _current(self) -> np.ndarray:
        """The numbers of the records that count, in the order of their ids."""
        ids = self._column("ids")
        order = np.argsort(ids, kind="stable")
        again = ids[order[1:]] == ids[order[:-1]]
        if again.any():
            twice = np.append(again, False) | np.append(False, again)
            rivals = order[twice]
            bad = self._column("kinds")[rivals] != _NO_ERROR
            earlier = ~self._column("times")[rivals]
            # Stable: of records that tie the first one counts.
            order[twice] = rivals[np.lexsort((earlier, bad, ids[rivals]))]
            order = order[np.append(True, ~again)]
        return order

    def _column(self, name: str) -> np.ndarray:
        return np.frombuffer(self._buffers[name], _WIDTHS[name])

    def _taken(self, name: str) -> np.ndarray:
        return np.frombuffer(self._buffers.pop(name), _WIDTHS[name])
