"""A comparison in numbers: outputs of one manifest in; a table for people and for programs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import methods
from pnp_batch.parameters import resolved
from pnp_batch.report.cost import spent
from pnp_batch.report.reported import Reported
from pnp_batch.report.trade import estimates
from pnp_batch.results import OK
from pnp_batch.scores import BY_NAME, HIGHER, LOWER, SCORES, TEXT, Score
from pnp_batch.world.compare import Estimate

ARROWS = {HIGHER: " ↑", LOWER: " ↓"}
NOTHING = "–"
FIRST = " of the first"
Table = list[list[str]]


@dataclass(frozen=True)
class Measured:
    """What one output of a comparison is worth and has cost.

    Attributes:
        name: of the variant that made it.
        output: its URI.
        method, parameters: of its job, and how that samples.
        rows, done, failed: asked for, with a picture, and without.
        scores: means over the rows that have one, with 95 % intervals.
        unet_evaluations: for each row with a picture, of the inversion and the guidance branch what
            its image's rows share among them; None where the method is not installed here.
        decodes: for each row, of latents with a pass backwards.
        trained: evaluations of tuning for each pair of texts, which `unet_evaluations` has not.
        seconds: that a device has computed for each row; inversions count where they were made.
    """

    name: str
    output: str
    method: str
    parameters: Mapping[str, Any]
    rows: int
    done: int
    failed: int
    scores: Mapping[str, Estimate]
    unet_evaluations: float | None
    decodes: float
    trained: int
    seconds: float | None


def measured(one: Reported) -> Measured:
    """Counts and averages what an output has recorded."""
    summary = one.recorded.summary()
    good = one.table.filter(pc.equal(one.table["status"], OK))
    cost = spent(one.table, str(one.there.settings.get("device", "auto")), None)
    sampling = {name: one.there.settings.get(name) for name in ("steps", "inversion_steps")}
    sampling |= {"deep_every": one.config.deep_every, "seed": one.config.seed}
    method = methods.get(one.config.method)
    parameters = resolved(method, one.config.parameters)
    each = max(1, summary.done)
    return Measured(
        name=one.name,
        output=one.storage.uri,
        method=one.config.method,
        parameters={**sampling, **parameters},
        rows=one.there.rows,
        done=summary.done,
        failed=summary.failed,
        scores=estimates(good, one.scores),
        unet_evaluations=None if cost.uncounted else sum(cost.evaluations.values()) / each,
        decodes=cost.decodes / each,
        trained=method.cost(one.config.sampling, parameters).trained,
        seconds=pc.mean(good["seconds"]).as_py(),
    )


def differences(outputs: Sequence[Reported]) -> dict[str, dict[str, Estimate]]:
    """By how much the rows of each output score above the same rows of the first one.

    Means with 95 % intervals, by output and score. What a row brings with it, such as a picture
    that is hard to translate, falls out of these, so that they tell more than means side by side.
    """
    scored = map(_scored, outputs)
    first, apart = next(scored, None), {}
    for one, own in zip(outputs[1:], scored, strict=True):
        both = own.join(first, "row", join_type="inner", right_suffix=FIRST)
        names = [name for name in one.scores if name + FIRST in both.column_names]
        columns = {name: pc.subtract(both[name], both[name + FIRST]) for name in names}
        apart[one.name] = estimates(pa.table(columns), names)
    return apart


def _scored(one: Reported) -> pa.Table:
    """The scores of the rows with a picture, each beside the digest of its row's id."""
    ids = one.recorded.ids[np.argsort(one.recorded.numbers)]
    scores = one.table.select(one.scores).append_column("row", pa.array(ids))
    return scores.filter(pc.equal(one.table["status"], OK))


def table(told: Sequence[Measured], most: int | None = None) -> Table:
    """A line of texts for each output below one of titles: its scores, then its cost.

    Args:
        told: the outputs.
        most: scores, None for all of structure and of text.
    """
    scores = [score for score in _main() if any(score.name in one.scores for one in told)][:most]
    decodes = any(one.decodes for one in told)
    heads = ["method", *(f"{score.title}{ARROWS[score.better]}" for score in scores)]
    heads += ["UNet evaluations", *["decodes"] * decodes, "s"]
    lines = [heads]
    for one in told:
        cells = [one.name, *(_interval(one.scores.get(score.name)) for score in scores)]
        cells += [_number(one.unet_evaluations), *[_number(one.decodes)] * decodes]
        lines.append([*cells, NOTHING if one.seconds is None else f"{one.seconds:.3g}"])
    return lines


def apart_table(told: Sequence[Measured], apart: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """The differences, likewise; empty if there is nothing to compare with."""
    scores = [score for score in _main() if any(score.name in one for one in apart.values())]
    if not scores:
        return []
    heads = [f"less {told[0].name}", *(f"{score.title}{ARROWS[score.better]}" for score in scores)]
    lines = (
        [name, *(_interval(one.get(s.name), "+") for s in scores)] for name, one in apart.items()
    )
    return [heads, *lines]


def markdown(
    told: Sequence[Measured],
    apart: Mapping[str, Mapping[str, Estimate]],
    notes: Sequence[str],
) -> str:
    """The tables as Markdown, and what is to be known of them."""
    tables = [_markdown(lines) for lines in (table(told), apart_table(told, apart)) if lines]
    return "\n\n".join([*tables, *notes]) + "\n"


def _markdown(lines: Table) -> str:
    heads, *lines = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    names = [f"`{line[0]}`" for line in lines]
    rules = ["---", *["---:"] * (len(heads) - 1)]
    cells = [heads, rules, *([n, *line[1:]] for n, line in zip(names, lines, strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _main() -> list[Score]:
    """The scores of the table: two of structure, and all that tell whether the text is followed."""
    structure = [BY_NAME[name] for name in ("structure_distance", "edge_correlation")]
    return [*structure, *(s for s in SCORES if s.kind == TEXT and s.better in ARROWS)]


def _interval(found: Estimate | None, sign: str = "-") -> str:
    """An estimate with three digits; `+` marks what is above 0, `-` only what is below."""
    if not found:
        return NOTHING
    mean, low, high = (f"{value:{sign}.3g}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}".removesuffix(".0")
