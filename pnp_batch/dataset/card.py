"""The card of a data set: an output in; `README.md` and `metadata.parquet` in it out.

With the two, the output's folder, or a copy of it on the Hugging Face hub, loads with
`datasets.load_dataset`. What a manifest says is text on the card, never markup.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pnp_batch import record, results
from pnp_batch.dataset.table import PICTURE, table
from pnp_batch.errors import InvalidConfig
from pnp_batch.record import Record
from pnp_batch.scores import BY_NAME
from pnp_batch.storage import Storage
from pnp_batch.summary import tables

CARD, TABLE = "README.md", "metadata.parquet"
MARK = "<!-- made by pnp-batch dataset card; without this line it is yours and is kept -->"
EXAMPLES, LONGEST = 6, 200
ROWS_A_GROUP = 10_000
# The hub's own words for how large a data set is, and below how many rows.
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))
LARGER = "1M<n<10M"


@dataclass(frozen=True)
class Card:
    """What was written.

    Attributes:
        card: where the card lies.
        rows: of the data set.
        left_out: failed rows.
    """

    card: str
    rows: int
    left_out: int


def write_card(uri: str, name: str | None = None, licence: str | None = None) -> Card:
    """Makes the output of a run a data set.

    Args:
        uri: the output.
        name: of the data set; by default the last part of `uri`.
        licence: under which the user publishes it; the card says that it is open if None.

    Raises:
        InvalidConfig: there is no run or no picture at `uri`, or a card that is not ours.
    """
    there, output = record.of_run(uri), Storage(uri)
    before = output.read_if_there(CARD)
    if before is not None and MARK.encode() not in before:
        raise InvalidConfig(
            f"{output.uri}/{CARD} was not made by this command", "move it away, then try again"
        )
    rows = table(output)
    summary = results.recorded(output).summary()
    name = name or PurePosixPath(output.uri).name
    pages = Environment(
        loader=PackageLoader("pnp_batch.dataset", "."), undefined=StrictUndefined, trim_blocks=True
    )  # not HTML: the template itself passes everything through `text`
    pages.filters["text"] = text
    page = pages.get_template("card.md.jinja").render(
        head=_head(name, licence, rows).rstrip(),
        mark=MARK,
        name=name,
        licence=licence,
        rows=len(rows),
        failed=summary.failed,
        model=_model(there),
        settings=there.settings,
        software=there.versions.get("pnp-batch", "unknown"),
        methods=sorted(Counter(rows["method"].to_pylist()).items()),
        scores=_scores(output),
        examples=_examples(rows),
        columns=rows.schema.names,
        kept=bool(there.settings.get("provenance")),
    )
    # The table first: a card without one would not load.
    output.write(TABLE, _parquet(rows))
    output.write(CARD, page.encode("utf-8", "replace"))
    return Card(f"{output.uri}/{CARD}", len(rows), summary.failed)


def text(value: object) -> str:
    """A value as words of a Markdown page, on one line, whatever it is made of.

    A character that is written as its number cannot be structure, in Markdown as in HTML.
    """
    line = " ".join(f"{value}".split())
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return "".join(
        c if c.isalnum() or c in " ,-" else f"&#{ord(c)};" if c.isprintable() else "�" for c in line
    )


def _head(name: str, licence: str | None, rows: pa.Table) -> str:
    """What the hub and its library read of a card, as YAML."""
    size = next((told for told, below in SIZES if len(rows) < below), LARGER)
    files = [TABLE, "images/**"]
    told: dict[str, Any] = {
        "pretty_name": name,
        **({"license": licence} if licence else {}),
        "task_categories": ["image-to-image"],
        "size_categories": [size],
        "tags": ["synthetic", "image-translation", "plug-and-play-diffusion-features"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    }
    head: str = yaml.safe_dump(told, sort_keys=False)
    return head


def _model(there: Record) -> str:
    """The model's name, without folders of the machine."""
    model, revision = (there.config.get(name) for name in ("model", "revision"))
    told = f"{model}"
    told = PurePosixPath(told).name if told.startswith(("/", "~", ".")) else told
    return f"{told}, revision {revision}" if revision else told


def _scores(output: Storage) -> list[Mapping[str, Any]]:
    """The mean of each score and its 95 % interval, of each method."""
    (by_method, *_) = tables(output)
    return [
        {"score": BY_NAME[name], "method": line.group, "rows": line.rows, "found": found}
        for name in BY_NAME
        for line in by_method.lines
        if (found := line.scores.get(name)) is not None
    ]


def _examples(rows: pa.Table) -> list[Mapping[str, Any]]:
    """Some rows from all over the table."""
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)
    picked = rows.select([PICTURE, "prompt", "method", "seed"]).take(chosen).to_pylist()
    return [dict(row) for row in picked]


def _parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=ROWS_A_GROUP)
    return buffer.getvalue()
