"""The report: an output in, a page out that opens from disk or object storage without a server.

`report/index.html` shows what ran, every kind of failure, and each guidance image beside what was
made of it. The images are those of the output; small copies of the guidance images lie beside the
page. What a manifest says is text on it, never markup.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pnp_batch import methods, record, results, rows, source
from pnp_batch.config import RunConfig
from pnp_batch.errors import RowError
from pnp_batch.job import policy
from pnp_batch.manifest import read
from pnp_batch.storage import Storage

FOLDER = "report"
NAME = f"{FOLDER}/index.html"
LARGEST = 500
PARAMETERS = (
    *("method", "steps", "inversion_steps", "guidance_scale", "pnp_f_t", "pnp_attn_t"),
    *("strength", "negative_prompt", "seed", "seconds"),
)


def write_report(uri: str, largest: int = LARGEST) -> str:
    """Writes the report of the run at `uri` into it.

    Args:
        uri: the output of a run.
        largest: rows at most that are shown with pictures, the first of the manifest.

    Returns:
        Where the page lies.

    Raises:
        InvalidConfig: there is no run at `uri`.
    """
    there = record.of_run(uri)
    output, config = Storage(uri), there.as_config(uri)
    table = results.read(output)
    recorded = {row["row_id"]: row for row in table.to_pylist()}
    summary = results.summarise(table)
    pages = Environment(
        loader=PackageLoader("pnp_batch.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = pages.get_template("page.html").render(
        uri=output.uri,
        there=asdict(there),
        summary=asdict(summary),
        total=len(recorded),
        shown=min(largest, len(recorded)),
        groups=list(_groups(output, config, recorded, largest).values()),
    )
    output.write(NAME, page.encode())
    return f"{output.uri}/{NAME}"


def _groups(
    output: Storage, config: RunConfig, recorded: Mapping[str, dict[str, Any]], largest: int
) -> dict[str, dict[str, Any]]:
    """The first rows by guidance image: its picture, and what was made of it or went wrong."""
    manifest = read(config.manifest)
    allowed = policy(config, manifest.base)
    groups: dict[str, dict[str, Any]] = {}
    asked = rows.expand(manifest, config, methods.names()).slice(0, largest).to_pylist()
    for row in asked:
        done = recorded.get(row["row_id"])
        if done is None:
            continue
        if row["guidance"] not in groups:
            name = f"{FOLDER}/sources/{len(groups):04d}.png"
            with_image = _with_source(output, name, row, done["resolution"], config.fit, allowed)
            groups[row["guidance"]] = {"source": with_image, "image": row["image"], "rows": []}
        used = {name: done[name] for name in PARAMETERS if done[name] is not None}
        groups[row["guidance"]]["rows"].append({**done, "used": used})
    return groups


def _with_source(
    output: Storage,
    name: str,
    row: Mapping[str, Any],
    side: int,
    fit: str,
    allowed: source.SourcePolicy,
) -> str | None:
    """Writes the guidance image of a row as it went to work; its name, None if there is none."""
    if row["image"] is None and row["image_bytes"] is None:
        return None
    try:
        image = source.open_image(row["image"], row["image_bytes"], allowed)
    except RowError:
        return None  # the row's own error says why
    buffer = io.BytesIO()
    source.prepare(image, side, fit).save(buffer, "png")
    output.write(name, buffer.getvalue())
    return name.removeprefix(f"{FOLDER}/")
