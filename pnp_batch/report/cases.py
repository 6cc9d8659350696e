"""The cases of a report: shown rows of one or more outputs in, what the page's gallery reads out.

A case is a row of a manifest with its prompt; each output that has it adds what it made of it. All
of it is plain JSON of strings, so that the page has nothing to compute but what it shows.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pnp_batch.report.pictures import SMALL, Pictures, larger, thumb
from pnp_batch.report.reported import NAMES, Reported, Row
from pnp_batch.scores import REASON
from pnp_batch.storage import Storage

# What the page tells of how a picture was made; equal ones stand there once.
PARAMETERS = (
    *("steps", "inversion_steps", "guidance_scale", "pnp_f_t", "pnp_attn_t", "strength"),
    *("deep_every", "resolution", "fit", "negative_prompt", "source_prompt"),
)
OF_ROW = ("seed", "seconds", "image", "source_sha256", "sha256", "latents_key")
LONGEST = 500  # letters of a manifest's own column


class Cases:
    """Collects cases.

    Args:
        folder: where the page lies.
        outputs: those that are shown, in their order.
        pictures: that are there.
    """

    def __init__(self, folder: Storage, outputs: Sequence[Reported], pictures: Pictures) -> None:
        self._there = pictures.there
        self._bases = [link(folder, told.storage) for told in outputs]
        self._extra = [told.extra for told in outputs]
        self._cases: dict[tuple[str, str], dict[str, Any]] = {}
        self._parameters: dict[tuple[tuple[str, str], ...], int] = {}

    def add(self, number: int, shown: Sequence[Row], guidance: Mapping[str, str]) -> None:
        """Adds what an output made of its rows; their guidance images by `row_id`."""
        for row in shown:
            key = row["row_id"], row["prompt"] or ""
            case = self._cases.setdefault(key, {"id": key[0], "prompt": key[1], "made": []})
            case["made"].append(self._made(number, row))
            name = guidance.get(row["row_id"])
            if name and "source" not in case:
                full = larger(name, row["resolution"])
                case |= {"source": name, "small": row["resolution"] <= SMALL}
                case |= {"source_full": full} if full != name else {}

    def __len__(self) -> int:
        return len(self._cases)

    def parts(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """The cases, so many at a time."""
        every = list(self._cases.values())
        yield from (every[n : n + size] for n in range(0, len(every), size))

    @property
    def parameters(self) -> list[list[tuple[str, str]]]:
        """The distinct sets of parameters, which cases name by their numbers."""
        return [list(one) for one in self._parameters]

    def _made(self, number: int, row: Row) -> dict[str, Any]:
        used = tuple((n, _text(row[n])) for n in PARAMETERS if row.get(n) not in (None, ""))
        made: dict[str, Any] = {
            "in": number,
            "status": row["status"],
            "method": row["method"] or "",
            "parameters": self._parameters.setdefault(used, len(self._parameters)),
            "facts": [(n, _text(row[n])) for n in OF_ROW if row.get(n) is not None],
            "extra": [(n, _text(row[n])) for n in self._extra[number] if row.get(n) is not None],
        }
        if row["error_type"]:
            made |= {"kind": row["error_type"], "message": row["error_message"] or ""}
        name = thumb(row)
        if name in self._there:
            made |= {"thumb": name, "small": (row["width"] or 0) <= SMALL}
        base = self._bases[number]
        # A browser cannot look into shards.
        if name and base is not None and row["member"] is None:
            made["full"] = base + quote(row["output"])
        scores = {n: value for n in NAMES if (value := _score(row.get(n))) is not None}
        reasons = _reasons(row.get(REASON))
        return made | ({"scores": scores} if scores else {}) | ({"why": reasons} if reasons else {})


def link(folder: Storage, output: Storage) -> str | None:
    """What leads from a page to an output's files; None if they have no folder in common."""
    here, there = folder.path("").strip("/").split("/"), output.path("").strip("/").split("/")
    if here[0] != there[0] or folder.is_local != output.is_local:
        return None
    if not folder.is_local and folder.uri.split(":")[0] != output.uri.split(":")[0]:
        return None
    return quote(posixpath.relpath("/".join(there), "/".join(here))) + "/"


def _text(value: Any) -> str:  # noqa: ANN401 - of any column
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)
    text = str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _score(value: float | None) -> float | str | None:
    """A number as JSON can say it: infinity, as the PSNR of equal pictures, is a word."""
    if value is None or math.isnan(value):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else f"{'-' * (value < 0)}Infinity"


def _reasons(told: str | None) -> dict[str, str]:
    try:
        reasons = json.loads(told or "{}")
    except ValueError:
        return {}
    found = reasons.items() if isinstance(reasons, dict) else ()
    return {name: str(reason) for name, reason in found if name in NAMES}
