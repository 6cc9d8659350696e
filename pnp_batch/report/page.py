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

from pnp_batch import record, results
from pnp_batch.report.gallery import LARGEST, PARAMETERS, Group, gallery
from pnp_batch.storage import Storage

FOLDER = "report"
NAME = f"{FOLDER}/index.html"


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
    output = Storage(uri)
    summary = results.recorded(output).summary()
    total = summary.done + summary.failed
    groups = gallery(there.as_config(output.uri), largest)
    pages = Environment(
        loader=PackageLoader("pnp_batch.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = pages.get_template("page.html").render(
        uri=output.uri,
        there=asdict(there),
        summary=asdict(summary),
        total=total,
        shown=min(largest, total),
        groups=[_shown(output, number, group) for number, group in enumerate(groups)],
    )
    output.write(NAME, page.encode())
    return f"{output.uri}/{NAME}"


def _shown(output: Storage, number: int, group: Group) -> dict[str, Any]:
    """A group as the page wants it; a copy of the guidance image is written beside the page."""
    name = None
    if group.source is not None:
        name = f"sources/{number:04d}.png"
        buffer = io.BytesIO()
        group.source.save(buffer, "png")
        output.write(f"{FOLDER}/{name}", buffer.getvalue())
    used = [{n: row[n] for n in PARAMETERS if row[n] is not None} for row in group.rows]
    made = [
        {**row, "used": own, "picture": _picture(output, row)}
        for row, own in zip(group.rows, used, strict=True)
    ]
    return {"source": name, "image": group.image, "rows": made}


def _picture(output: Storage, row: Mapping[str, Any]) -> str | None:
    """Where the page finds a row's picture; a browser cannot look into shards."""
    if row["output"] is None:
        return None
    if row["member"] is None:
        return f"../{row['output']}"
    name = f"pictures/{row['member']}"
    output.write(f"{FOLDER}/{name}", results.picture(output, row))
    return name
