"""What an output has cost: columns of its rows in, UNet evaluations and hours of devices out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import methods
from pnp_batch.errors import InvalidConfig
from pnp_batch.parameters import resolved
from pnp_batch.results import OK
from pnp_batch.steps import Sampling

SHARES = ("pnp_f_t", "pnp_attn_t", "strength")
RECIPE = (
    *("method", "steps", "inversion_steps", "deep_every", "guidance_scale", *SHARES, "parameters"),
)
# The columns of the results that tell what rows have cost.
COUNTED = ("status", *RECIPE, "source_sha256", "latents_key", "seconds", "recorded_at")


@dataclass(frozen=True)
class Spent:
    """What the rows with a picture took.

    Attributes:
        evaluations: of the UNet, in rows of a batch, by where they were spent; an inversion counts
            once for each guidance image, whether this job made it or found it in the cache.
        decodes: of latents with a pass backwards, through a CLIP.
        uncounted: methods that are not installed here, so that theirs are missing.
        hours: that the devices computed, loading and waiting apart.
        device: `GPU` or `CPU`.
        price: of these hours, None where none is given.
    """

    evaluations: Mapping[str, int]
    decodes: int
    uncounted: tuple[str, ...]
    hours: float
    device: str
    price: float | None


def spent(table: pa.Table, device: str, price_per_hour: float | None) -> Spent:
    """Counts what the rows of an output took.

    Args:
        table: `COUNTED` of all its rows.
        device: that `run.json` names.
        price_per_hour: of one device.
    """
    good = table.filter(pc.equal(table["status"], OK))
    counted = {"inversions": 0, "guidance": 0, "translation": 0}
    decodes, uncounted = 0, set()
    told = [("status", "count"), ("source_sha256", "count_distinct")]
    usable = good.filter(pc.is_valid(good["steps"]))
    for recipe in usable.group_by(list(RECIPE), use_threads=False).aggregate(told).to_pylist():
        given = {name: recipe[name] for name in SHARES if recipe[name] is not None}
        given |= json.loads(recipe["parameters"] or "{}")
        sampling = Sampling(recipe["steps"], recipe["inversion_steps"], recipe["deep_every"] or 1)
        try:
            method = methods.get(recipe["method"])
            cost = method.cost(sampling, resolved(method, given))
        except (InvalidConfig, KeyError):  # a plug-in of another machine, or of another version
            uncounted.add(str(recipe["method"]))
            continue
        counted["guidance"] += recipe["source_sha256_count_distinct"] * cost.guidance
        counted["translation"] += recipe["status_count"] * cost.row
        decodes += recipe["status_count"] * cost.decodes
    counted["inversions"] = _inversions(usable)
    hours = (pc.sum(table["seconds"]).as_py() or 0.0) / 3600
    return Spent(
        evaluations=counted,
        decodes=decodes,
        uncounted=tuple(sorted(uncounted)),
        hours=hours,
        device="CPU" if device in ("cpu", "auto") else "GPU",
        price=None if price_per_hour is None else hours * price_per_hour,
    )


def _inversions(table: pa.Table) -> int:
    """Evaluations of the inversions that the rows started from, each counted once."""
    inverted = table.filter(pc.is_valid(table["latents_key"]))
    keys = [("latents_key", "count_distinct")]
    total = 0
    for group in inverted.group_by(["steps", "inversion_steps"]).aggregate(keys).to_pylist():
        each = (group["inversion_steps"] or group["steps"]) // group["steps"]
        total += group["latents_key_count_distinct"] * ((group["steps"] - 1) * each + 1)
    return total
