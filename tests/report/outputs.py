"""Outputs to report, as runs leave them: a manifest, guidance images, pictures and records."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pyarrow as pa
from PIL import Image

from pnp_batch import record, results
from pnp_batch.config import RunConfig
from pnp_batch.record import Record
from pnp_batch.storage import Storage
from tests.pictures import saved

SIDE = 32
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'>'
HOSTILE_ID = "</script>\"'&#x2028;\u2028+%2F #row=x"
SCORES = pa.schema(
    [
        *((name, pa.float64()) for name in ("clip_similarity", "structure_distance", "psnr")),
        ("not_scored", pa.string()),
    ]
)


@cache
def image(colour: str, side: int = SIDE) -> bytes:
    """A picture of one colour."""
    return saved(Image.new("RGB", (side, side), colour))


def written(folder: Path, rows, *, scored: bool = False, where: str = "", **settings) -> Storage:
    """Writes an output of rows.

    A row has `row_id`, `prompt`, `image` and whatever else its record is to say; `colour` is that
    of the picture, and an `error_type` makes it a failed one. `settings` are those of `run.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    asked = [{name: row[name] for name in ("row_id", "image", "prompt")} for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in asked))
    output = Storage(where or str(folder / "out"))
    config = RunConfig(str(manifest), output.uri, method="copy").as_dict()
    settings = {"model_digest": "d1", "steps": 4, "device": "cpu", **settings}
    ended = record.now()
    there = Record(config, settings, len(rows), state="done", finished_at=ended)
    record.write(output, there)
    results.write(output, table(folder, output, rows, scored=scored))
    return output


def table(folder: Path, output: Storage, rows, *, scored: bool) -> pa.Table:
    """The records of rows, whose pictures are written."""
    sources: dict[str, str | None] = {}
    records, pictures = [], set()
    for row in rows:
        name = row["image"]
        if name not in sources:
            file = folder / name
            sources[name] = digest(file.read_bytes()) if file.exists() else None
        made = {"method": "copy", "resolution": SIDE, "status": "ok", **row}
        made |= {"source_sha256": sources[name], "seconds": 0.5, "seed": 2**62 + 1}
        if "error_type" in row:
            made["status"] = "error"
        else:
            data = image(row.get("colour", "red"), row.get("resolution", SIDE))
            made |= {"sha256": digest(data), "output": f"images/00/{digest(data)[:8]}.png"}
            made |= {"width": made["resolution"], "height": made["resolution"]}
            if made["output"] not in pictures:
                pictures.add(made["output"])
                output.write(made["output"], data)
        records.append(made)
    schema = pa.schema([*results.SCHEMA, *(SCORES if scored else ())])
    return pa.Table.from_pylist(records, schema)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def source(folder: Path, name: str, colour: str, side: int = SIDE) -> str:
    """Writes a guidance image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(image(colour, side))
    return name
