"""Validation: a manifest in, what a run would say of it out, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pnp_batch import methods, results, rows, source
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidRow, RowError
from pnp_batch.job import policy
from pnp_batch.manifest import read
from pnp_batch.results import Failure
from pnp_batch.source import SourcePolicy

READERS = 8


@dataclass(frozen=True)
class Validation:
    """What a manifest holds.

    Attributes:
        rows: output rows it asks for.
        images: distinct guidance images (with the prompt they are inverted with).
        embedded, linked, generated: how many of them come as bytes, as a URI, from a prompt.
        extra: the columns that are carried into the results.
        bad: the bad rows by kind, with an example of each.
        opened: distinct images that were opened, None if none were to be.
    """

    rows: int
    images: int
    embedded: int
    linked: int
    generated: int
    extra: tuple[str, ...]
    bad: tuple[Failure, ...]
    opened: int | None = None

    @property
    def bad_rows(self) -> int:
        """Rows that a run would record as errors."""
        return sum(failure.count for failure in self.bad)


def validate(config: RunConfig, *, images: bool = False) -> Validation:
    """Checks a manifest as a run would.

    Args:
        config: the job; of it the manifest, the method and the limits on images count.
        images: open every distinct image too.

    Raises:
        InvalidManifest: a run would refuse it.
    """
    manifest = read(config.manifest)
    results.schema(manifest.extra)
    table = rows.expand(manifest, config, methods.names())
    columns = ["row_id", "guidance", "image", "problem"]
    listed = table.select(columns).append_column("embedded", pc.is_valid(table["image_bytes"]))
    records = listed.to_pylist()
    distinct = {row["guidance"]: row for row in records}
    failed: dict[str, RowError] = {}
    if images:
        failed = _opened(table, policy(config, manifest.base))
    return Validation(
        rows=len(records),
        images=len(distinct),
        embedded=sum(row["embedded"] for row in distinct.values()),
        linked=sum(not r["embedded"] and r["image"] is not None for r in distinct.values()),
        generated=sum(not r["embedded"] and r["image"] is None for r in distinct.values()),
        extra=tuple(manifest.extra.names),
        bad=_failures(records, failed),
        opened=len(distinct) if images else None,
    )


def _opened(table: Any, allowed: SourcePolicy) -> dict[str, RowError]:  # noqa: ANN401 - Arrow
    """What is wrong with each guidance image that cannot be used."""
    wanted = table.filter(pc.is_null(table["problem"]))
    failed: dict[str, RowError] = {}
    seen: set[str] = set()
    with ThreadPoolExecutor(READERS) as readers:
        for batch in wanted.select(["guidance", "image", "image_bytes"]).to_batches(1024):
            new = {r["guidance"]: r for r in batch.to_pylist() if r["guidance"] not in seen}
            seen |= set(new)
            errors = readers.map(lambda row: _problem(row, allowed), new.values())
            failed |= {k: e for k, e in zip(new, errors, strict=True) if e is not None}
    return failed


def _problem(row: Mapping[str, Any], allowed: SourcePolicy) -> RowError | None:
    if row["image"] is None and row["image_bytes"] is None:
        return None
    try:
        source.open_image(row["image"], row["image_bytes"], allowed)
    except RowError as error:
        return error
    return None


def _failures(records: list[dict[str, Any]], failed: Mapping[str, RowError]) -> tuple[Failure, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}
    for kind, row_id, message in _bad(records, failed):
        counts[kind] += 1
        examples.setdefault(kind, (row_id, message))
    return tuple(Failure(kind, count, *examples[kind]) for kind, count in counts.most_common())


def _bad(
    records: list[dict[str, Any]], failed: Mapping[str, RowError]
) -> Iterator[tuple[str, str, str]]:
    for row in records:
        if row["problem"] is not None:
            yield InvalidRow.__name__, row["row_id"], row["problem"]
        elif row["guidance"] in failed:
            error = failed[row["guidance"]]
            yield type(error).__name__, row["row_id"], str(error)
