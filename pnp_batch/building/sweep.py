"""A sweep: a manifest in, out each of its rows once for every combination of parameters' values.

A value stands in the column of its name, or else in `parameters`. The rows made of one follow each
other and have its seed, so that they share one inversion and differ in what is swept alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pnp_batch import config, parameters
from pnp_batch.building.names import plain
from pnp_batch.building.target import Built, Target
from pnp_batch.building.whole import Whole
from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.identity import derived_seed
from pnp_batch.manifest import LISTED, NUMBER_COLUMNS, PARAMETERS, read
from pnp_batch.option import Option, flag
from pnp_batch.parameters import OWN_COLUMNS, PER_JOB, Takes

METHOD, SEED = "method", "seed"
COLUMNS = (METHOD, SEED, *OWN_COLUMNS)
# An id is also a file's name. Longer ones end in a hash.
LONGEST = 120
# Rows that are made at a time, with paths of images and with the images themselves.
ROWS, ROWS_WITH_IMAGES = 4_096, 64


@dataclass(frozen=True)
class Combination:
    """One value of each swept parameter.

    Attributes:
        columns: those that stand in columns of their own, by name.
        others: those that stand in `parameters`.
        told: what the ids of its rows end with: `__pnp_f_t=0.4__pnp_attn_t=0.2`.
    """

    columns: Mapping[str, Any]
    others: Mapping[str, Any]
    told: str


def sweep(uri: str, given: Sequence[str], target: Target, methods: Mapping[str, Takes]) -> Built:
    """Writes a manifest with a row for every row of another, entry of its prompt, and combination.

    A row without a seed gets the one that it has in a run of the whole with `--seed 0`.

    Args:
        uri: the whole.
        given: `NAME=V1,V2,...` each, or `NAME=V1;V2;...` where values have commas.
        target: the manifest to write.
        methods: all that there are.

    Raises:
        InvalidConfig: an unknown name, or a value that it does not take.
        InvalidManifest: the whole cannot be read.
        NotBuilt: the target's format cannot hold a column.
    """
    chosen = combinations(given, methods)
    whole = Whole(read(uri), target.base)
    schema = _schema(whole, chosen[0])
    at_a_time = max(1, (ROWS_WITH_IMAGES if whole.embeds else ROWS) // len(chosen))

    def tables() -> Iterator[pa.Table]:
        for table, _ in whole.rows():
            placed = whole.placed(table)
            for begun in range(0, len(placed), at_a_time):
                rows = placed.slice(begun, at_a_time).to_pylist()
                made = [new for row in rows for new in _swept(row, chosen)]
                yield pa.Table.from_pylist(made, schema)

    return target.write_tables(schema, tables(), whole.pictures)


def combinations(given: Sequence[str], methods: Mapping[str, Takes]) -> list[Combination]:
    """All combinations of the values that were given, the last parameter's changing fastest.

    Raises:
        InvalidConfig: as `sweep` does.
    """
    values: dict[str, list[Any]] = {}
    for text in given:
        name, told = _split(text)
        if name in values:
            raise InvalidConfig(f"--set {name}: given twice", f"write --set {name}=V1,V2 once")
        values[name] = _values(name, told, methods)
    names = list(values)
    return [
        Combination(
            {n: v for n, v in zip(names, some, strict=True) if n in COLUMNS},
            {n: v for n, v in zip(names, some, strict=True) if n not in COLUMNS},
            "".join(f"__{n}={_shown(v)}" for n, v in zip(names, some, strict=True)),
        )
        for some in itertools.product(*values.values())
    ]


def _split(text: str) -> tuple[str, list[str]]:
    name, equals, told = text.partition("=")
    values = [part.strip() for part in told.split(";" if ";" in told else ",")]
    if not equals or not name.strip() or not all(values):
        raise InvalidConfig(
            f"--set {text!r} is no NAME=V1,V2,...", "write --set pnp_f_t=0.4,0.6,0.8"
        )
    return name.strip().replace("-", "_"), values


def _values(name: str, told: Sequence[str], methods: Mapping[str, Takes]) -> list[Any]:
    option = _option(name, methods)
    found: list[Any] = []
    for text in told:
        try:
            value = option.checked(name, option.parsed(text))
        except InvalidConfig as error:
            raise InvalidConfig(f"--set {error}", error.hint) from error
        except (ValueError, KeyError) as error:
            raise InvalidConfig(
                f"--set {name}: {text!r} is no {option.type.__name__}", f"{name}: {option.help}"
            ) from error
        if name == METHOD and value not in methods:
            raise InvalidConfig(f"--set {name}: {value!r} is unknown", did_you_mean(value, methods))
        if value in found:
            raise InvalidConfig(
                f"--set {name}: {_shown(value)} is there twice", "give each value once"
            )
        found.append(value)
    return found


def _option(name: str, methods: Mapping[str, Takes]) -> Option:
    """What a row may set under this name."""
    of_rows = {n: o for n, o in parameters.OPTIONS.items() if n not in PER_JOB}
    of_rows |= {n: config.OPTIONS[n] for n in (METHOD, SEED)}
    if name in of_rows:
        return of_rows[name]
    if name in config.OPTIONS:
        raise InvalidConfig(
            f"--set {name}: it is of the whole job, not of rows",
            f"use {flag(name)}, or pnp-batch compare --methods pnp:{name}=...",
        )
    added: dict[str, Option] = {}
    for method in methods:
        with suppress(InvalidConfig):  # a broken plug-in is nobody's who does not name it
            added |= methods[method].options
    if name not in added:
        near = did_you_mean(name, {*of_rows, *added})
        raise InvalidConfig(f"--set {name}: no such parameter", near)
    return added[name]


def _shown(value: Any) -> str:  # noqa: ANN401 - of an option's type
    """A value where only letters, digits, `.`, `_` and `-` may stand; distinct ones stay so."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    safe = plain(text)
    return safe if safe == text else f"{safe}{'-' * bool(safe)}{_hash(text)[:8]}"


def _schema(whole: Whole, any_of: Combination) -> pa.Schema:
    kinds = {SEED: pa.int64(), **dict.fromkeys(NUMBER_COLUMNS, pa.float64())}
    added = [SEED, *any_of.columns, *([PARAMETERS] if any_of.others else [])]
    fields = {field.name: field.type for field in whole.schema if field.name != LISTED}
    fields |= {name: kinds.get(name, pa.string()) for name in added} | {"prompt": pa.string()}
    return pa.schema(list(fields.items()))


def _swept(row: dict[str, Any], chosen: Sequence[Combination]) -> Iterator[dict[str, Any]]:
    """The rows that are made of one of the whole."""
    listed = row.pop(LISTED) and bool(row["prompt"])
    seed = derived_seed(0, row["row_id"]) if row.get(SEED) is None else row[SEED]
    for number, prompt in enumerate(row["prompt"] or [None]):
        row_id = f"{row['row_id']}-{number}" if listed else row["row_id"]
        for one in chosen:
            new = {**row, "row_id": _named(row_id + one.told), "prompt": prompt, SEED: seed}
            if one.others:
                new[PARAMETERS] = _merged(row.get(PARAMETERS), one.others)
            yield {**new, **one.columns}


def _merged(told: str | None, others: Mapping[str, Any]) -> str:
    """A row's `parameters` with the swept ones; what is no JSON object stays as it is."""
    try:
        own = json.loads(told or "{}")
    except ValueError:
        own = None
    return parameters.as_json({**own, **others}) if isinstance(own, dict) else str(told)


def _named(row_id: str) -> str:
    if len(row_id) <= LONGEST:
        return row_id
    return f"{row_id[: LONGEST - 13]}-{_hash(row_id)[:12]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
