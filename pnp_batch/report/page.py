"""The report: outputs in, a folder out whose page opens from disk or object storage.

`index.html` tells what ran, what it cost, what failed and how the scores are; its gallery shows
each guidance image beside what was made of it. The page needs neither a server nor the network:
scripts that lie beside it hold the rows, as a page from disk may read no other file. What a
manifest says is text on it, never markup.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pnp_batch.clock import now
from pnp_batch.errors import WrongUsage
from pnp_batch.report import plot, trade
from pnp_batch.report.cases import Cases
from pnp_batch.report.pictures import Pictures
from pnp_batch.report.reported import Reported, reported
from pnp_batch.report.told import told_of
from pnp_batch.scores import SCORES
from pnp_batch.storage import Storage

FOLDER = "report"
NAME = "index.html"
SCRIPTS = ("elements.js", "rows.js", "report.js")
DATA = "data"
LIMIT = 10_000
MANY = 2  # outputs that are told of in full; more stand in a table
CASES_A_FILE = 1_000
_OURS = re.compile(DATA + r"/rows-\d{4}-[0-9a-f]{12}\.js")


def write_report(
    *uris: str,
    place: str | None = None,
    limit: int = LIMIT,
    price_per_hour: float | None = None,
) -> str:
    """Writes the report of the runs at `uris`.

    Args:
        uris: outputs of runs; more than one are compared.
        place: the folder or URI that the page is written to; `report` in the first output if None.
        limit: rows of each output that are shown with pictures, beside those that have failed.
        price_per_hour: of one device.

    Returns:
        Where the page lies.

    Raises:
        InvalidConfig: there is no run at one of the URIs.
    """
    if not uris:
        raise WrongUsage("a report is of one output or more", "name the --output of a run")
    outputs = reported(uris, limit)
    where = place or f"{outputs[0].storage.uri}/{FOLDER}"
    return write_page(outputs, where, limit, price_per_hour)


def write_page(
    outputs: Sequence[Reported], place: str, limit: int, price_per_hour: float | None = None
) -> str:
    """Writes the report of outputs that have been read, as `write_report` does."""
    folder = Storage(place)
    cases = _cases(folder, outputs, limit)
    scripts = list(_scripts(folder, cases))
    levels = trade.levels(outputs)
    names = [one.name for one in outputs]
    page = _template().render(
        title=" · ".join(names) if len(names) <= MANY else f"{len(names)} outputs compared",
        many=len(names) > MANY,
        outputs=[told_of(one, price_per_hour) for one in outputs],
        written=now(),
        shown=len(cases),
        limit=limit,
        scripts=scripts,
        own=SCRIPTS,
        meta=_meta(outputs, cases, trade.axes(levels) or ()),
        levels=levels,
        scores=[score for score in SCORES if any(score.name in one.scores for one in levels)],
        plot=trade.plot(levels),
        unscored=[one.storage.uri for one in outputs if not one.scores],
    )
    folder.write("style.css", (_packaged("style.css") + plot.STYLE + "\n").encode())
    for name in SCRIPTS:
        folder.write(name, _packaged(name).encode())
    folder.write(NAME, page.encode())
    for name in folder.files(DATA):
        if _OURS.fullmatch(name) and name not in scripts:
            folder.delete(name)
    return f"{folder.uri}/{NAME}"


def _cases(folder: Storage, outputs: Sequence[Reported], limit: int) -> Cases:
    """The rows to show, after their pictures have been made."""
    pictures = Pictures(folder)
    shown = []
    for one in outputs:
        found = one.rows(limit)
        pictures.outputs(one.storage, found)
        shown.append((found, pictures.guidance(one, found)))
    cases = Cases(folder, outputs, pictures)
    for number, (found, guidance) in enumerate(shown):
        cases.add(number, found, guidance)
    return cases


def _scripts(folder: Storage, cases: Cases) -> Iterator[str]:
    """Writes the cases as scripts; their names, which change with what they hold.

    The text is JSON in a string: no name in it can be a property that scripts know, and no letter
    one that HTML or older scripts take for something else.
    """
    for number, part in enumerate(cases.parts(CASES_A_FILE), 1):
        text = json.dumps(json.dumps(part, ensure_ascii=False)).replace("<", "\\u003c")
        script = f"(window.pnpCases ??= []).push(...JSON.parse({text}));\n".encode()
        name = f"{DATA}/rows-{number:04d}-{hashlib.sha256(script).hexdigest()[:12]}.js"
        folder.write(name, script)
        yield name


def _meta(outputs: Sequence[Reported], cases: Cases, axes: Sequence[str]) -> dict[str, Any]:
    """What the page's script must know before it reads a case."""
    there = {name for one in outputs for name in one.scores}
    return {
        "outputs": [one.name for one in outputs],
        "axes": axes,
        "scores": [asdict(score) for score in SCORES if score.name in there],
        "parameters": cases.parameters,
        "cases": len(cases),
    }


def _template() -> Any:  # noqa: ANN401 - a template of Jinja's
    pages = Environment(
        loader=PackageLoader("pnp_batch.report", "."), autoescape=True, undefined=StrictUndefined
    )
    return pages.get_template("page.html")


def _packaged(name: str) -> str:
    return (files("pnp_batch.report") / name).read_text("utf-8")
