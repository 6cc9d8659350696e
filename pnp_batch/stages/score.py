"""The stages of an evaluation: recorded rows with their guidance images in, scored records out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from pnp_batch import results, source
from pnp_batch.control import beat
from pnp_batch.scores import REASON, SCORED_WITH
from pnp_batch.stages.work import PARTS, Reading, unpacked
from pnp_batch.storage import Storage

if TYPE_CHECKING:
    from pnp_batch.evaluation import Found, Judge, Measures, NotScored, Pair

RECORD = "record"
AT_A_TIME = 16
# The extra columns of a manifest that an evaluation looks at.
CAPTION, MASK, WORLD = "source_caption", "mask", "world"
WANTED = (
    *("prompt", "source_prompt", "output", "member", "sha256", "source_sha256"),
    *(CAPTION, MASK, WORLD),
)


@dataclass(frozen=True)
class Scoring:
    """What the stages of an evaluation need to know."""

    output: Storage
    measures: Measures
    device: str
    threads: int
    reading: Reading


Row = Mapping[str, Any]


class Guidance(NamedTuple):
    """A row's guidance image as it was read now, or what is wrong with it."""

    pixels: bytes | None
    sha256: str | None
    problem: str | None


class Score:
    """An actor that scores the rows of a block; each becomes a newer record of itself.

    It tells `control`, if any is given, that it is there.
    """

    def __init__(self, work: Scoring, control: Any = None) -> None:  # noqa: ANN401 - an actor handle
        self._work = work
        if control is not None:
            beat(control)

    @cached_property
    def _judge(self) -> Judge:
        import torch

        from pnp_batch.evaluation import Judge

        torch.set_num_threads(self._work.threads)
        return Judge(self._work.measures, self._work.device)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores the rows of a packed block; the answer has their records alone."""
        table = unpacked(block)
        records = pa.Table.from_struct_array(table[RECORD])
        known = [name for name in WANTED if name in records.column_names]
        given = [table[name].to_pylist() for name in ("pixels", "source_sha256", "error_message")]
        guidance = (Guidance(*one) for one in zip(*given, strict=True))
        rows = list(zip(records.select(known).to_pylist(), guidance, strict=True))
        scores: list[Mapping[str, Found]] = []
        for start in range(0, len(rows), AT_A_TIME):
            scores += self._scored(rows[start : start + AT_A_TIME])
        return _with_scores(records, scores, self._work.measures.keys)

    def _scored(self, rows: Sequence[tuple[Row, Guidance]]) -> list[Mapping[str, Found]]:
        from pnp_batch.evaluation import Pair

        with ThreadPoolExecutor(source.READERS) as readers:
            found = list(readers.map(self._pair, rows))
        pairs = [one for one in found if isinstance(one, Pair)]
        scores = iter(self._judge.score(pairs) if pairs else [])
        columns = self._work.measures.columns
        return [
            next(scores) if isinstance(one, Pair) else dict.fromkeys(columns, one) for one in found
        ]

    def _pair(self, row: tuple[Row, Guidance]) -> Pair | NotScored:
        from pnp_batch.evaluation import NotScored, Pair, mask_of

        told, guidance = row
        output = self._picture(told)
        if isinstance(output, NotScored):
            return output
        reading = self._work.reading
        return Pair(
            output=output,
            source=_source(told, guidance, reading.resolution),
            prompt=told["prompt"],
            source_prompt=_text(told["source_prompt"]) or _text(told.get(CAPTION)),
            mask=mask_of(told.get(MASK), reading.policy, reading.resolution, reading.fit),
            world=told.get(WORLD),
        )

    def _picture(self, told: Row) -> Image.Image | NotScored:
        """The translated picture of a row, if it is still the one that was recorded."""
        from pnp_batch.evaluation import NotScored

        try:
            data = results.picture(self._work.output, told)
        except FileNotFoundError:
            return NotScored(f"{told['output']} is gone")
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            return NotScored(f"{told['output']} is not the picture that was recorded")
        return Image.open(io.BytesIO(data)).convert("RGB")


class ScoreSink(Datasink[None]):
    """Records what a task got."""

    def __init__(self, output: Storage, control: Any) -> None:  # noqa: ANN401 - an actor handle
        self._output = output
        self._control = control

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:  # noqa: ANN401 - Ray's context
        """Writes the blocks of one task."""
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if len(table):
                results.write(self._output, table)
                ray.get(self._control.add.remote({results.OK: len(table), PARTS: 1}))


def _source(told: Row, guidance: Guidance, side: int) -> Image.Image | NotScored:
    """The guidance image as it went to work, if it is still the one that did."""
    from pnp_batch.evaluation import NotScored

    if guidance.problem is not None:
        return NotScored(f"no guidance image: {guidance.problem}")
    if guidance.pixels is None:
        return NotScored("the guidance image was generated, and is not kept")
    if guidance.sha256 != told["source_sha256"]:
        return NotScored("the guidance image has changed since")
    return Image.frombytes("RGB", (side, side), guidance.pixels)


def _text(given: object) -> str:
    return given if isinstance(given, str) else ""


def _with_scores(
    records: pa.Table, scores: Sequence[Mapping[str, Found]], keys: Mapping[str, str]
) -> pa.Table:
    """The same records with scores, a moment younger: of a row the youngest counts."""
    names = list(scores[0]) if scores else []
    for name in names:
        values = [row[name] if isinstance(row[name], float) else None for row in scores]
        records = _set(records, name, pa.array(values, pa.float64()))
    reasons = [
        _reasons(before, row) for before, row in zip(_column(records, REASON), scores, strict=True)
    ]
    records = _set(records, REASON, pa.array(reasons, pa.string()))
    with_ = [_keys(before, keys) for before in _column(records, SCORED_WITH)]
    records = _set(records, SCORED_WITH, pa.array(with_, pa.string()))
    moment = pa.scalar(1, pa.duration("us"))
    return _set(records, "recorded_at", pc.add(records["recorded_at"], moment))


def _column(records: pa.Table, name: str) -> list[str | None]:
    known = name in records.column_names
    return records[name].to_pylist() if known else [None] * len(records)


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    number = table.schema.get_field_index(name)
    return (
        table.set_column(number, name, values) if number >= 0 else table.append_column(name, values)
    )


def _reasons(before: str | None, scores: Mapping[str, Found]) -> str | None:
    """Why scores are null, as JSON by score; what another evaluation said of others stays."""
    told = {k: v for k, v in json.loads(before or "{}").items() if k not in scores}
    told |= {name: one.reason for name, one in scores.items() if not isinstance(one, float)}
    return json.dumps(told, ensure_ascii=False) if told else None


def _keys(before: str | None, keys: Mapping[str, str]) -> str:
    """The keys of all families that the row has been scored with."""
    others = [key for key in (before or "").split() if key.partition(":")[0] not in keys]
    return " ".join(sorted([*others, *keys.values()]))
