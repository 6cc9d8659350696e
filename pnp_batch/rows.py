"""Rows: a manifest in, one Arrow row per picture to make out, every parameter resolved.

A row's identity, seed and guidance image are settled here, from the row alone, so that nothing
later depends on order, batch or worker. A bad row is not refused: its `problem` says what is
wrong with it, and it becomes an error row of the results.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.config import OPTIONS, RunConfig
from pnp_batch.errors import did_you_mean
from pnp_batch.manifest import KNOWN_COLUMNS, LISTED, NUMBER_COLUMNS, Manifest

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
        ("problem", pa.string()),
    ]
)
# What stands before the name of an extra column, which may be any of ours.
EXTRA = "extra: "
SHARES = ("pnp_f_t", "pnp_attn_t", "strength")
# One encoder for all values: `json.dumps` would make one for each.
_json = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


def expand(manifest: Manifest, config: RunConfig, methods: Collection[str]) -> Iterator[pa.Table]:
    """Makes the output rows of a manifest, some at a time.

    Args:
        manifest: the checked manifest.
        config: the job, whose values stand where a row has none of its own.
        methods: the names that a row's `method` may have.

    Yields:
        Tables of `SCHEMA` and the manifest's extra columns, their names behind `EXTRA`.

    Raises:
        InvalidManifest: a file of it is damaged.
    """
    expansion = _Expansion(config, methods)
    for batch in manifest.batches():
        yield expansion.rows(batch, manifest.extra.names)


def derived_seed(job_seed: int, row_id: str) -> int:
    """The seed of a row that names none: a hash of the job's seed and the manifest row's id."""
    digest = hashlib.sha256(f"{job_seed}/{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Expansion:
    """Expands a manifest chunk by chunk; keeps what the chunks have in common."""

    def __init__(self, config: RunConfig, methods: Collection[str]) -> None:
        self._config = config
        self._methods = methods
        self._identical = _Repeats()

    def rows(self, chunk: pa.RecordBatch, extra: Sequence[str]) -> pa.Table:
        """The output rows of some manifest rows: one each, or one for each entry of a list."""
        prompts = _Prompts.of(chunk)
        columns = self._columns(chunk, prompts)
        columns["problem"] = pa.array(_problems(columns, self._methods), pa.string())
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

    def _columns(self, chunk: pa.RecordBatch, prompts: _Prompts) -> dict[str, pa.Array]:
        """What all entries of a manifest row have in common."""
        own = {f.name: _column(chunk, f.name, f.type) for f in SCHEMA}
        path, data = (pc.struct_field(chunk["image"], part) for part in ("path", "bytes"))
        own["image"] = pc.if_else(pc.equal(path, ""), None, path)
        own["image_bytes"] = data
        embedded = [None if d is None else _sha256(d) for d in data.to_pylist()]
        hashes = _row_hashes(chunk, prompts, own["image"].to_pylist(), embedded)
        ids = list(self._identified(own["row_id"].to_pylist(), hashes))
        seeds = [
            derived_seed(self._config.seed, row_id) if seed is None else seed
            for seed, row_id in zip(own["seed"].to_pylist(), ids, strict=True)
        ]
        own["row_id"] = pa.array(ids, pa.string())
        own["row_hash"] = pa.array(hashes, pa.string())
        own["seed"] = pa.array(seeds, pa.int64())
        own["method"] = pc.if_else(pc.equal(own["method"], ""), None, own["method"])
        for name in ("negative_prompt", "method", *NUMBER_COLUMNS):
            value = getattr(self._config, name, None)
            own[name] = own[name] if value is None else pc.fill_null(own[name], value)
        prompted = pc.fill_null(own["source_prompt"], "").to_pylist()
        origins = _origins(own["image"].to_pylist(), embedded, seeds)
        own["guidance"] = pa.array(map(_named, origins, prompted), pa.string())
        return own

    def _identified(self, given: list[str | None], hashes: list[str]) -> Iterator[str]:
        """The ids of manifest rows: their own, or what they say and how often it was said."""
        nameless = [row_hash for name, row_hash in zip(given, hashes, strict=True) if not name]
        repeats = iter(self._identical.before(nameless))
        for name, row_hash in zip(given, hashes, strict=True):
            if name:
                yield name
            else:
                before = next(repeats)
                yield f"{row_hash[:24]}-{before}" if before else row_hash[:24]


class _Repeats:
    """Counts identical rows, in eight bytes for each distinct one."""

    def __init__(self) -> None:
        self._once: list[np.ndarray] = []  # sorted, each about half as long as the one before
        self._more: Counter[int] = Counter()

    def before(self, hashes: Sequence[str]) -> list[int]:
        """How often each of these hashes stood before, here and in earlier calls."""
        short = np.array([int(text[:16], 16) for text in hashes], np.uint64)
        counts, new = [0] * len(short), set[int]()
        known = self._known(short)
        for index, value in enumerate(short.tolist()):
            if known[index] or value in new:
                self._more[value] += 1
                counts[index] = self._more[value]
            new.add(value)
        self._add(np.unique(short[~known]))
        return counts

    def _known(self, values: np.ndarray) -> np.ndarray:
        known = np.zeros(len(values), bool)
        for earlier in self._once:
            place = np.searchsorted(earlier, values)
            known |= earlier[np.minimum(place, len(earlier) - 1)] == values
        return known

    def _add(self, values: np.ndarray) -> None:
        while self._once and len(self._once[-1]) <= 2 * len(values):
            values = np.union1d(self._once.pop(), values)
        if len(values):
            self._once.append(values)


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
        parts = [_json(text) for text in flat.to_pylist()]
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


def _row_hashes(
    chunk: pa.RecordBatch,
    prompts: _Prompts,
    images: list[str | None],
    embedded: list[str | None],
) -> list[str]:
    """A hash of what each row says: its JSON, the same from Parquet, CSV and JSON Lines."""
    names = [name for name in chunk.schema.names if name not in ("image", "prompt", LISTED)]
    told: dict[str, list[Any]] = {name: chunk[name].to_pylist() for name in names}
    told["image_bytes"] = embedded
    fragments = {
        name: [None if value is None else f"{_json(name)}: {_json(value)}" for value in values]
        for name, values in told.items()
    }
    # These two are told also when they are null.
    fragments["image"] = [f'"image": {_json(image)}' for image in images]
    fragments["prompt"] = [f'"prompt": {quoted}' for quoted in prompts.quoted]
    rows = zip(*(fragments[name] for name in sorted(fragments)), strict=True)
    texts = ("{" + ", ".join(filter(None, row)) + "}" for row in rows)
    return [_sha256(text.encode())[:32] for text in texts]


def _named(origin: tuple[str, str], source_prompt: str) -> str:
    """Names a guidance image together with the prompt it is inverted with."""
    return _sha256(json.dumps([*origin, source_prompt]).encode())[:32]


def _origins(
    images: list[str | None], embedded: list[str | None], seeds: list[int]
) -> Iterator[tuple[str, str]]:
    """Where each row's guidance image comes from."""
    for image, digest, seed in zip(images, embedded, seeds, strict=True):
        if digest is not None:
            yield "bytes", digest
        elif image is not None:
            yield "uri", image
        else:
            yield "generated", str(seed)


def _problems(columns: dict[str, pa.Array], methods: Collection[str]) -> list[str | None]:
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
    known = pc.is_in(names, pa.array(methods, pa.string()))
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


def _unknown(method: str, methods: Collection[str]) -> str:
    return f"method {method!r} is unknown; {did_you_mean(method, methods)}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
