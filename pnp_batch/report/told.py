"""What a report tells of an output before its rows: an output in, its numbers as texts out."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any

from pnp_batch import record
from pnp_batch.clock import duration
from pnp_batch.report.cost import Spent, spent
from pnp_batch.report.reported import Reported


def told_of(one: Reported, price_per_hour: float | None) -> dict[str, Any]:
    """The summary of an output, as the page's template wants it."""
    there, summary = one.there, one.recorded.summary()
    cost = spent(one.table, str(there.settings.get("device", "auto")), price_per_hour)
    model = str(there.config.get("model", ""))
    settings = {n: v for n, v in there.settings.items() if n != "model_digest"}
    return {
        "name": one.name,
        "uri": one.storage.uri,
        "state": there.state,
        "running": there.state == record.RUNNING,
        "rows": there.rows,
        "done": summary.done,
        "failed": summary.failed,
        "missing": max(0, there.rows - summary.done - summary.failed),
        "failures": summary.failures,
        "problem": one.problem,
        "tiles": _tiles(one, cost, model, summary.failed),
        "uncounted": cost.uncounted,
        "facts": [
            ("manifest", there.config.get("manifest")),
            ("model digest", there.settings.get("model_digest")),
            ("started", there.started_at),
            ("ended", there.finished_at or "not yet"),
            *((name.replace("_", " "), value) for name, value in settings.items()),
            *((f"{name} version", value) for name, value in there.versions.items()),
        ],
        "retry": shlex.join(["pnp-batch", "retry", one.storage.uri]),
    }


def _tiles(one: Reported, cost: Spent, model: str, failed: int) -> list[tuple[str, str, str]]:
    """The numbers that stand large: title, value, and what it is made of."""
    there, done = one.there, len(one.recorded) - failed
    share = f"{failed / len(one.recorded):.1%} of recorded rows" if failed else "none"
    methods = ", ".join(sorted(set(one.table["method"].to_pylist()) - {None}))
    ended = there.finished_at or there.updated_at
    began, end = datetime.fromisoformat(there.started_at), datetime.fromisoformat(ended)
    when = f"ended {end:%Y-%m-%d %H:%M} UTC" if there.finished_at else "not ended yet"
    each = cost.evaluations
    made = ", ".join(f"{count:,} {name}" for name, count in each.items() if count)
    tiles = [
        ("translated", f"{done:,}", f"of {there.rows:,} rows"),
        ("failed", f"{failed:,}", share),
        ("model", model, methods),
        ("latest run", duration((end - began).total_seconds()), when),
        ("UNet evaluations", _short(sum(each.values())), made or "none"),
        (f"{cost.device} time", _time(cost.hours), "computing, over all workers"),
    ]
    if cost.price is not None:
        tiles.append(("cost", f"{cost.price:,.2f}", f"of the {cost.device} time"))
    return tiles


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (1000 if letter == 'k' else size):.3g} {letter}"
    return f"{count:,}"


def _time(hours: float) -> str:
    if hours >= 100:
        return f"{hours:,.0f} h"
    return f"{hours:.2f} h" if hours >= 1 else duration(3600 * hours)
