"""The summary of scores: an output in; means with intervals by method and by prompts out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import results
from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.scores import SCORES
from pnp_batch.storage import Storage
from pnp_batch.world import compare
from pnp_batch.world.compare import Estimate

METHOD = "method"
# Columns of manifests that tell prompts apart, the first that is there: PIE-Bench's, and the
# embedded benchmark's. Else the prompts themselves, where many rows share them.
FAMILIES = ("prompt_family", "editing_type", "kind")
PROMPT, MOST_PROMPTS = "prompt", 24
# With more values a bootstrap of their mean shows nothing but the normal distribution, slowly.
MOST_RESAMPLED = 2000
Z = 1.959964  # of 95 %


@dataclass(frozen=True)
class Line:
    """One group of rows: how many, and of each score the mean with its 95 % interval."""

    group: str
    rows: int
    scores: dict[str, Estimate]


@dataclass(frozen=True)
class Table:
    """The rows of an output, told apart by the values of a column."""

    by: str
    lines: tuple[Line, ...]


def grouping(schema: pa.Schema, by: str | None) -> str:
    """The column that tells rows apart beside the method.

    Args:
        schema: of the results.
        by: a column instead of the one that suits.

    Raises:
        InvalidConfig: there is no such column, or its values cannot be told apart.
    """
    if by is None:
        return next((n for n in FAMILIES if n in schema.names and _is_plain(schema, n)), PROMPT)
    if by not in schema.names:
        hint = did_you_mean(by, schema.names)
        raise InvalidConfig(f"--by {by}: the results have no such column", hint)
    if not _is_plain(schema, by):
        raise InvalidConfig(f"--by {by}: its values cannot be told apart", "name another column")
    return by


def _is_plain(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind))


def tables(output: Storage, by: str | None = None) -> Iterator[Table]:
    """Summarises what has been scored: by method, and by what tells prompts apart.

    Args:
        output: of a run.
        by: a column of the results instead of the one that suits.

    Raises:
        InvalidConfig: no such column.
    """
    schema = results.recorded(output).records.schema
    if not len(schema):
        return
    scored = [score.name for score in SCORES if score.name in schema.names]
    column = grouping(schema, by)
    rows = results.read(output, list(dict.fromkeys(["status", METHOD, column, *scored])))
    rows = rows.filter(pc.equal(rows["status"], results.OK))
    yield Table(METHOD, tuple(_lines(rows, METHOD, scored)))
    most = MOST_PROMPTS if column != PROMPT else min(MOST_PROMPTS, len(rows) // 2)
    few = len(rows[column].unique()) <= most
    if column != METHOD and (by is not None or few):
        yield Table(column, tuple(_lines(rows, column, scored)))


def _lines(rows: pa.Table, by: str, scored: list[str]) -> Iterator[Line]:
    groups = rows[by].cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
    codes = groups.indices.to_numpy()
    values = {name: rows[name].to_numpy() for name in scored}  # null is NaN there
    for group, code in sorted((g, c) for c, g in enumerate(groups.dictionary.to_pylist())):
        own = np.flatnonzero(codes == code)
        found = {name: column[own] for name, column in values.items()}
        found = {name: column[~np.isnan(column)] for name, column in found.items()}
        yield Line(group, len(own), {n: estimate(v) for n, v in found.items() if len(v)})


def estimate(values: np.ndarray) -> Estimate:
    """The mean of some values with its 95 % interval, by bootstrap as long as that tells more."""
    if len(values) <= MOST_RESAMPLED:
        return compare.estimated(values)
    mean = float(values.mean())
    half = Z * float(values.std()) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)
