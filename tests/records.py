"""Records for tests: tables as runs write them, and a history in which rows are recorded twice."""

from __future__ import annotations

import datetime

import pyarrow as pa

from pnp_batch import results
from pnp_batch.results import SCHEMA
from pnp_batch.storage import Storage

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def table(*rows, schema=SCHEMA):
    """A table of records, given as (row_id, status, minutes past noon, other columns)."""
    dicts = [
        {
            "row_id": row_id,
            "status": status,
            "recorded_at": NOON + datetime.timedelta(minutes=minutes),
            **(other[0] if other else {}),
        }
        for row_id, status, minutes, *other in rows
    ]
    return pa.Table.from_pylist(dicts, schema)


def shown(table):
    """Rows as (row_id, status, minutes past noon), by row_id."""
    rows = table.select(["row_id", "status", "recorded_at"]).to_pylist()
    return sorted(
        (r["row_id"], r["status"], int((r["recorded_at"] - NOON).total_seconds() // 60))
        for r in rows
    )


class SettledMeanwhile(Storage):
    """Another process settles the results after this one has listed them."""

    listed = 0

    def files(self, folder=""):
        names = super().files(folder)
        self.listed += 1
        if self.listed == 1:
            results.settle(Storage(self.uri))
        return names


HISTORY = (
    table(("retried", "error", 0), ("twice", "ok", 0), ("failing", "error", 0)),
    table(("retried", "ok", 1)),
    table(("twice", "ok", 2)),
    table(("failing", "error", 3)),
    table(("worse", "ok", 1)),
    table(("worse", "error", 4), ("single", "ok", 0)),
    table(("at once", "error", 5), ("at once", "ok", 1), ("at once", "error", 6)),
)
OUTCOME = [
    ("at once", "ok", 1),
    ("failing", "error", 3),
    ("retried", "ok", 1),
    ("single", "ok", 0),
    ("twice", "ok", 2),
    ("worse", "ok", 1),
]
