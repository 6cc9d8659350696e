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
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.config import OPTIONS, RunConfig
from pnp_batch.errors import InvalidManifest, did_you_mean
from pnp_batch.manifest import LISTED, NUMBER_COLUMNS, Manifest

# The columns of a row before the manifest's own extra ones. `row_hash` tells whether a row has
# changed since it was recorded; rows with the same `guidance` share inversion and guidance branch.
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("row_hash", pa.string()),
        ("guidance", pa.string()),
        ("image", pa.string()),
        ("image_bytes", pa.binary()),
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
SHARES = ("pnp_f_t", "pnp_attn_t", "strength")
CHUNK = 4096
SHOWN = 3


def expand(manifest: Manifest, config: RunConfig, methods: Collection[str]) -> pa.Table:
    """Makes the output rows of a manifest.

    Args:
        manifest: the checked manifest.
        config: the job, whose values stand where a row has none of its own.
        methods: the names that a row's `method` may have.

    Returns:
        A table of `SCHEMA` and the manifest's extra columns.

    Raises:
        InvalidManifest: two rows have one `row_id`.
    """
    seen: Counter[str] = Counter()
    tables = []
    for batch in manifest.table.to_batches(max_chunksize=CHUNK):
        rows: list[dict[str, Any]] = []
        origin: list[int] = []
        for index, row in enumerate(batch.to_pylist()):
            made = list(_outputs(row, config, methods, seen))
            rows += made
            origin += [index] * len(made)
        extra = batch.select(manifest.extra.names).take(pa.array(origin, pa.int64()))
        made_table = pa.Table.from_pylist(rows, SCHEMA)
        for name in manifest.extra.names:
            made_table = made_table.append_column(name, extra.column(name))
        tables.append(made_table)
    table = pa.concat_tables(tables)
    _refuse_duplicates(table["row_id"], manifest.uri)
    return table


def _outputs(
    row: Mapping[str, Any], config: RunConfig, methods: Collection[str], seen: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The output rows of one manifest row: one, or one per entry of its prompt list."""
    listed = row[LISTED]
    prompts = row["prompt"] or [None]
    digest, image = _digest(row, listed)
    row_id = row.get("row_id") or f"{digest[:24]}{_ordinal(seen, digest)}"
    numbers = {name: row.get(name) for name in NUMBER_COLUMNS}
    base = {
        "row_hash": digest,
        "image": image["path"],
        "image_bytes": image["bytes"],
        "source_prompt": row.get("source_prompt"),
        "negative_prompt": row.get("negative_prompt"),
        "seed": row.get("seed"),
        "method": row.get("method") or config.method,
        **{n: getattr(config, n, None) if v is None else float(v) for n, v in numbers.items()},
    }
    if base["negative_prompt"] is None:
        base["negative_prompt"] = config.negative_prompt
    if base["seed"] is None:
        base["seed"] = derived_seed(config.seed, row_id)
    base["guidance"] = _guidance(base)
    base["problem"] = _problem(base, methods)
    for number, prompt in enumerate(prompts):
        problem = base["problem"]
        if problem is None and not (prompt or "").strip():
            problem = "prompt is null or empty; give it a text"
        own_id = f"{row_id}-{number}" if listed and row["prompt"] else row_id
        yield {**base, "row_id": own_id, "prompt": prompt, "problem": problem}


def derived_seed(job_seed: int, row_id: str) -> int:
    """The seed of a row that names none: a hash of the job's seed and the manifest row's id."""
    digest = hashlib.sha256(f"{job_seed}/{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _digest(row: Mapping[str, Any], listed: bool) -> tuple[str, dict[str, Any]]:
    """A hash of what the row says, the same from Parquet, CSV and JSON Lines; and its image."""
    image = row["image"] or {"bytes": None, "path": None}
    own = {k: v for k, v in row.items() if v is not None and k not in (LISTED, "image", "prompt")}
    own["prompt"] = row["prompt"] if listed else (row["prompt"] or [None])[0]
    own["image"] = image["path"] or None
    if image["bytes"] is not None:
        own["image_bytes"] = hashlib.sha256(image["bytes"]).hexdigest()
    text = json.dumps(own, sort_keys=True, default=str, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return digest, {"bytes": image["bytes"], "path": image["path"] or None}


def _ordinal(seen: Counter[str], digest: str) -> str:
    before = seen[digest]
    seen[digest] += 1
    return f"-{before}" if before else ""


def _guidance(row: Mapping[str, Any]) -> str:
    """Names the guidance image together with the prompt it is inverted with."""
    if row["image_bytes"] is not None:
        origin = ["bytes", hashlib.sha256(row["image_bytes"]).hexdigest()]
    elif row["image"] is not None:
        origin = ["uri", row["image"]]
    else:
        origin = ["generated", str(row["seed"])]
    text = json.dumps([*origin, row["source_prompt"] or ""])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _problem(row: Mapping[str, Any], methods: Collection[str]) -> str | None:
    """What makes the row unusable whatever its prompt, or None."""
    if row["image"] is None and row["image_bytes"] is None and not row["source_prompt"]:
        return "image is null; give it an image, or a source_prompt to generate one from"
    if row["method"] not in methods:
        return f"method {row['method']!r} is unknown; {did_you_mean(row['method'], methods)}"
    for name in SHARES:
        value = row[name]
        if value is not None and not 0.0 <= value <= 1.0:
            return f"{name} is {value:g}; it must lie in 0..1"
    high = OPTIONS["guidance_scale"].high or math.inf
    if not 0.0 <= row["guidance_scale"] <= high:
        return f"guidance_scale is {row['guidance_scale']:g}; it must lie in 0..{high:g}"
    return None


def _refuse_duplicates(ids: pa.ChunkedArray, where: str) -> None:
    counts = pc.value_counts(ids.combine_chunks())
    if len(counts) == len(ids):
        return
    names = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    first = [name.as_py() for name in names[:SHOWN]]
    places = [
        f"{name!r} in rows " + ", ".join(map(str, _places(ids, name)[:SHOWN])) for name in first
    ]
    raise InvalidManifest(
        f"{where}: row_id is not unique: {len(names)} of them stand twice: " + "; ".join(places),
        "make row_id unique, or leave the column out",
    )


def _places(ids: pa.ChunkedArray, name: str) -> list[int]:
    found: list[int] = pc.indices_nonzero(pc.equal(ids, name)).to_pylist()
    return found
