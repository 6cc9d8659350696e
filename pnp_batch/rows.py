"""Rows: a manifest in, one Arrow row per picture to make out, every parameter resolved.

A row's identity, seed and guidance image are settled here, from the row alone, so that nothing
later depends on order, batch or worker. A bad row is not refused: its `problem` says what is
wrong with it, and it becomes an error row of the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import parameters
from pnp_batch.config import OPTIONS, RunConfig
from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.identity import Ids, as_json, derived_seed, guidance_names, row_hashes, sha256
from pnp_batch.manifest import KNOWN_COLUMNS, LISTED, NUMBER_COLUMNS, PARAMETERS, Manifest
from pnp_batch.parameters import OWN_COLUMNS, Takes

# The columns of a row before the manifest's own extra ones. `row_hash` tells whether a row has
# changed since it was recorded; rows with the same `guidance` share inversion and guidance branch.
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("row_hash", pa.string()),
        ("guidance", pa.string()),
        ("image", pa.string()),
        ("image_bytes", pa.large_binary()),  # together they may be more than 2 GiB
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("source_prompt", pa.string()),
        ("seed", pa.int64()),
        ("method", pa.string()),
        ("guidance_scale", pa.float64()),
        ("pnp_f_t", pa.float64()),
        ("pnp_attn_t", pa.float64()),
        ("strength", pa.float64()),
        ("shared", pa.string()),  # what all rows of a batch have in common, as JSON
        ("own", pa.string()),  # and what each has for itself
        ("problem", pa.string()),
    ]
)
# What stands before the name of an extra column, which may be any of ours.
EXTRA = "extra: "
SETTLED = 4096  # distinct sets of parameters that are remembered
SHARES = ("pnp_f_t", "pnp_attn_t", "strength")
Methods = Mapping[str, Takes]


def expand(manifest: Manifest, config: RunConfig, methods: Methods) -> Iterator[pa.Table]:
    """Makes the output rows of a manifest, some at a time.

    Args:
        manifest: the checked manifest.
        config: the job, whose values stand where a row has none of its own.
        methods: those that a row may name.

    Yields:
        Tables of `SCHEMA` and the manifest's extra columns, their names behind `EXTRA`.

    Raises:
        InvalidManifest: a file of it is damaged.
    """
    expansion = _Expansion(config, methods)
    for batch in manifest.batches():
        yield expansion.rows(batch, manifest.extra.names)


def identified(manifest: Manifest) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    """The rows of a manifest, some at a time, and the ids that they have in every run of it."""
    ids = Ids()
    for batch in manifest.batches():
        yield batch, _Told.of(batch, _Prompts.of(batch).quoted).ids(ids)


class _Expansion:
    """Expands a manifest chunk by chunk; keeps what the chunks have in common."""

    def __init__(self, config: RunConfig, methods: Methods) -> None:
        self._config = config
        self._job = config.parameters
        self._methods = methods
        self._ids = Ids()
        self._settled: dict[tuple[Any, ...], tuple[str | None, str | None, str | None]] = {}

    def rows(self, chunk: pa.RecordBatch, extra: Sequence[str]) -> pa.Table:
        """The output rows of some manifest rows: one each, or one for each entry of a list."""
        prompts = _Prompts.of(chunk)
        columns = self._columns(chunk, prompts)
        problems = _problems(columns, self._methods)
        self._settle(columns, _column(chunk, PARAMETERS, pa.string()), problems)
        columns["problem"] = pa.array(problems, pa.string())
        made = {name: values.take(prompts.origin) for name, values in columns.items()}
        made["row_id"] = pa.array(prompts.numbered(made["row_id"].to_pylist()), pa.string())
        made["prompt"] = prompts.texts
        empty = pc.if_else(prompts.empty(), "prompt is null or empty; give it a text", None)
        made["problem"] = pc.coalesce(made["problem"], empty)
        carried = [chunk[name].take(prompts.origin) for name in extra]
        return pa.table(
            [*(made[name] for name in SCHEMA.names), *carried],
            schema=pa.schema(
                [*SCHEMA, *(chunk.schema.field(name).with_name(EXTRA + name) for name in extra)]
            ),
        )

    def _settle(
        self, columns: dict[str, pa.Array], given: pa.Array, problems: list[str | None]
    ) -> None:
        """Settles the parameters of rows, and notes which of them have wrong ones."""
        names = ("method", *OWN_COLUMNS)
        told = zip(*(columns[name].to_pylist() for name in names), given.to_pylist(), strict=True)
        found: list[tuple[str | None, str | None]] = []
        for index, values in enumerate(told):
            if problems[index] is not None:
                found.append((None, None))
                continue
            if values not in self._settled:
                if len(self._settled) >= SETTLED:
                    self._settled.clear()
                self._settled[values] = self._values(*values)
            *both, problems[index] = self._settled[values]
            found.append((both[0], both[1]))
        for place, name in enumerate(("shared", "own")):
            columns[name] = pa.array([values[place] for values in found], pa.string())

    def _values(self, method: str, *told: Any) -> tuple[str | None, str | None, str | None]:
        """The shared and own parameters of rows that say the same, or what is wrong with them."""
        *columns, given = told
        takes = self._methods[method]
        try:
            row = parameters.of_row(takes, given)
            values = {**self._job, **row, **dict(zip(OWN_COLUMNS, columns, strict=True))}
            settled = parameters.resolved(takes, values)
        except InvalidConfig as error:
            return None, None, f"{error}; {error.hint}"
        return parameters.shared(takes, settled), parameters.own(takes, settled), None

    def _columns(self, chunk: pa.RecordBatch, prompts: _Prompts) -> dict[str, pa.Array]:
        """What all entries of a manifest row have in common."""
        own = {f.name: _column(chunk, f.name, f.type) for f in SCHEMA}
        told = _Told.of(chunk, prompts.quoted)
        own["image"], own["image_bytes"] = told.image, told.data
        ids = told.ids(self._ids)
        seeds = [
            derived_seed(self._config.seed, row_id) if seed is None else seed
            for seed, row_id in zip(own["seed"].to_pylist(), ids, strict=True)
        ]
        own["row_id"] = pa.array(ids, pa.string())
        own["row_hash"] = pa.array(told.hashes, pa.string())
        own["seed"] = pa.array(seeds, pa.int64())
        own["method"] = pc.if_else(pc.equal(own["method"], ""), None, own["method"])
        for name in ("negative_prompt", "method", *NUMBER_COLUMNS):
            value = getattr(self._config, name, None)
            own[name] = own[name] if value is None else pc.fill_null(own[name], value)
        prompted = pc.fill_null(own["source_prompt"], "").to_pylist()
        own["guidance"] = pa.array(
            guidance_names(told.images, told.embedded, seeds, prompted), pa.string()
        )
        return own


@dataclass(frozen=True)
class _Told:
    """What some manifest rows say.

    Attributes:
        image: the paths or URIs of their images.
        data: their embedded images.
        images: as `image`.
        embedded: the SHA-256 of `data`.
        hashes: of all that each row says.
        given: the ids they give themselves.
    """

    image: pa.Array
    data: pa.Array
    images: list[str | None]
    embedded: list[str | None]
    hashes: list[str]
    given: list[str | None]

    @classmethod
    def of(cls, chunk: pa.RecordBatch, quoted: list[str]) -> _Told:
        path, data = (pc.struct_field(chunk["image"], part) for part in ("path", "bytes"))
        image = pc.if_else(pc.equal(path, ""), None, path)
        images = image.to_pylist()
        embedded = [None if d is None else sha256(d) for d in data.to_pylist()]
        hashes = row_hashes(chunk, quoted, images, embedded)
        given = _column(chunk, "row_id", pa.string()).to_pylist()
        return cls(image, data, images, embedded, hashes, given)

    def ids(self, ids: Ids) -> list[str]:
        """The rows' ids, after those of the rows before."""
        return list(ids.of(self.given, self.hashes))


@dataclass(frozen=True)
class _Prompts:
    """The prompts of some manifest rows, one after another.

    Attributes:
        texts: the prompt of each output row.
        origin: the manifest row of each output row.
        number: its place in the list of prompts, -1 where there is no list.
        quoted: the prompts of each manifest row, as JSON.
    """

    texts: pa.Array
    origin: np.ndarray
    number: np.ndarray
    quoted: list[str]

    @classmethod
    def of(cls, chunk: pa.RecordBatch) -> _Prompts:
        lists, listed = chunk["prompt"], chunk[LISTED].to_numpy(zero_copy_only=False)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        ends = np.cumsum(lengths)
        # A row without any prompt has one output row too, which says so.
        counts = np.maximum(lengths, 1)
        origin = np.repeat(np.arange(len(lists)), counts)
        number = np.arange(len(origin)) - np.repeat(np.cumsum(counts) - counts, counts)
        there = lengths[origin] > 0
        flat = pc.list_flatten(lists)
        place = (ends - lengths)[origin] + number
        parts = [as_json(text) for text in flat.to_pylist()]
        quoted = [
            f"[{own}]" if is_list else own or "null"
            for start, end, is_list in zip(ends - lengths, ends, listed, strict=True)
            for own in [", ".join(parts[start:end])]
        ]
        return cls(
            texts=flat.take(pa.array(place, mask=~there)),
            origin=origin,
            number=np.where(there & listed[origin], number, -1),
            quoted=quoted,
        )

    def numbered(self, ids: Iterable[str]) -> Iterator[str]:
        """The output rows' ids, made of those of their manifest rows."""
        for row_id, number in zip(ids, self.number.tolist(), strict=True):
            yield row_id if number < 0 else f"{row_id}-{number}"

    def empty(self) -> pa.Array:
        """Which prompts say nothing."""
        return pa.array([not (t and t.strip()) for t in self.texts.to_pylist()], pa.bool_())


def _column(chunk: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """A column of the manifest; nulls where it has none."""
    known = name in KNOWN_COLUMNS and name in chunk.schema.names
    return chunk[name] if known else pa.nulls(len(chunk), kind)


def _problems(columns: dict[str, pa.Array], methods: Methods) -> list[str | None]:
    """What makes each row unusable whatever its prompt, or None."""
    found: list[str | None] = [None] * len(columns["row_id"])

    def refuse(bad: pa.Array, message: Callable[[int], str]) -> None:
        for index in pc.indices_nonzero(pc.fill_null(bad, False)).to_pylist():
            found[index] = found[index] or message(index)

    image_less = pc.and_(pc.is_null(columns["image"]), pc.is_null(columns["image_bytes"]))
    unprompted = pc.equal(pc.fill_null(columns["source_prompt"], ""), "")
    told = "image is null; give it an image, or a source_prompt to generate one from"
    refuse(pc.and_(image_less, unprompted), lambda _: told)
    names = columns["method"]
    known = pc.is_in(names, pa.array(list(methods), pa.string()))
    refuse(pc.invert(known), lambda index: _unknown(names[index].as_py(), methods))
    limits = [(name, 1.0) for name in SHARES]
    limits.append(("guidance_scale", OPTIONS["guidance_scale"].high or math.inf))
    for name, high in limits:
        values = columns[name]
        inside = pc.and_(pc.greater_equal(values, 0.0), pc.less_equal(values, high))
        refuse(
            pc.invert(inside),
            lambda index, name=name, high=high, values=values: (  # type: ignore[misc]
                f"{name} is {values[index].as_py():g}; it must lie in 0..{high:g}"
            ),
        )
    return found


def _unknown(method: str, methods: Methods) -> str:
    return f"method {method!r} is unknown; {did_you_mean(method, methods)}"
