"""Settings: rows of one method in, the same told apart by the values that a sweep gave them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import methods
from pnp_batch.errors import InvalidConfig
from pnp_batch.parameters import OPTIONS, as_json

# What a manifest may vary from row to row, and the most settings of it that are told apart.
PARAMETERS = "parameters"
SWEPT = ("guidance_scale", "pnp_f_t", "pnp_attn_t", "strength", PARAMETERS)
MOST = 12


def settings(table: pa.Table, method: str) -> Iterator[tuple[str, pa.Table]]:
    """The rows of a method by the values that vary among them.

    Args:
        table: the rows, with the columns `SWEPT`.
        method: of all of them.

    Yields:
        What a page says of the values, empty where all are alike, and the rows that have them.
    """
    table = table.set_column(
        table.column_names.index(PARAMETERS), PARAMETERS, _swept(table[PARAMETERS], method)
    )
    varied = [name for name in SWEPT if pc.count_distinct(table[name], "only_valid").as_py() > 1]
    found = table.select(varied).group_by(varied).aggregate([]).to_pylist() if varied else []
    if not 1 < len(found) <= MOST:
        yield "", table
        return
    found.sort(key=lambda one: [(value is not None, value) for value in one.values()])
    told = _told(found)
    for setting, words in zip(found, told, strict=True):
        mask = np.ones(len(table), bool)
        for name, value in setting.items():
            same = pc.is_null(table[name]) if value is None else pc.equal(table[name], value)
            mask &= pc.fill_null(same, False).to_numpy()
        yield words, table.filter(pa.array(mask))


def _swept(column: pa.ChunkedArray, method: str) -> pa.Array:
    """The other parameters of rows, without what each row has for itself, such as its subject."""
    coded = column.combine_chunks().dictionary_encode()
    own = {name for name, option in _options(method).items() if option.per_row}
    kept = [
        as_json({name: value for name, value in json.loads(text).items() if name not in own})
        for text in coded.dictionary.to_pylist()
    ]
    return pa.array(kept, pa.string()).take(coded.indices)


def _options(method: str) -> Mapping[str, Any]:
    try:
        return {**methods.get(method).options, **OPTIONS}
    except InvalidConfig:  # a plug-in of another machine
        return OPTIONS


def _told(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Settings in words: of the other parameters those that differ."""
    every = [
        {name: value for name, value in one.items() if name != PARAMETERS}
        | json.loads(one.get(PARAMETERS) or "{}")
        for one in found
    ]
    names = dict.fromkeys(name for one in every for name in one)
    differing = [name for name in names if len({as_json(one.get(name)) for one in every}) > 1]
    for one in every:
        words = [f"{name} {_shown(one[name])}" for name in differing if one.get(name) is not None]
        yield f" {', '.join(words)}" if words else ""


def _shown(value: Any) -> str:  # noqa: ANN401 - of any parameter
    return f"{value:g}" if isinstance(value, float) else str(value)
