"""The second stage: loaded rows in, the rows as the results hold them and their pixels out."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from PIL import Image

from pnp_batch import methods, results, sink, source
from pnp_batch.attempts import ATTEMPTS, Verdict
from pnp_batch.batches import PLACE, Place
from pnp_batch.control import beat
from pnp_batch.errors import ModelError, RowTimeout
from pnp_batch.latents import LatentCache
from pnp_batch.parameters import OWN_COLUMNS, as_json
from pnp_batch.rows import EXTRA
from pnp_batch.stages.work import Work, kind, text, unpacked

if TYPE_CHECKING:
    from pnp_batch.engine import Engine, Outcome
    from pnp_batch.origins import Row

# What the engine needs of a row; the other columns only travel along.
NEEDED = (
    "row_id",
    "guidance",
    "pixels",
    "prompt",
    "method",
    *PLACE,
    "negative_prompt",
    "source_prompt",
    "seed",
    "guidance_scale",
    "shared",
    "own",
    "error_type",
)


class Translate:
    """An actor that translates the rows of a block, with the model where rows need one."""

    def __init__(self, work: Work, control: Any, preload: bool) -> None:  # noqa: ANN401
        self._work = work
        self._control = control
        self._cache = LatentCache(work.cache) if work.cache else None
        self._has_worked = False
        self._unet_ms = 0  # as far as it is counted
        self._running: list[str] = []
        self._watchdog: threading.Timer | None = None
        beat(control)
        self._idle_since = time.monotonic()
        if preload:  # while the first images are read
            _ = self._engine
            self._idle_since = time.monotonic()

    @cached_property
    def _engine(self) -> Engine:
        import torch

        from pnp_batch.diffusion.tuning import tune
        from pnp_batch.engine import Engine
        from pnp_batch.models import StableDiffusion

        work = self._work
        work.model.check_digest()
        torch.set_num_threads(work.threads)
        model = StableDiffusion(work.model, work.device, work.dtype)
        tune(model, work.memory_format, work.attention, compiled=work.compiled)
        return Engine(
            model,
            sampling=work.sampling,
            resolution=work.reading.resolution,
            cache=self._cache,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Translates the rows of a packed block; those that a stop left out are missing after."""
        begun = time.monotonic()
        made = self._made(unpacked(block))
        ended = time.monotonic()
        spent = {"wait_ms": begun - self._idle_since, "work_ms": ended - begun}
        self._idle_since = ended
        self._control.add.remote({name: round(1000 * s) for name, s in spent.items()})
        return made

    def _made(self, table: pa.Table) -> pa.Table:
        records = table.select(list(NEEDED)).to_pylist()
        made: dict[int, bytes | None] = {}
        outcomes: dict[int, Outcome] = {}
        for index, record in enumerate(records):
            if record["error_type"] is not None:
                made[index] = None
            elif record["pixels"] is not None and not methods.get(record["method"]).uses_model:
                made[index] = record["pixels"]
        rest = {r["row_id"]: i for i, r in enumerate(records) if i not in made}
        for outcome in self._translated([self._row(records[i]) for i in rest.values()]):
            index = rest[outcome.row.row_id]
            outcomes[index] = outcome
            made[index] = None if outcome.image is None else outcome.image.tobytes()
        self._refuse_general_failure(outcomes.values())
        self._report(outcomes.values())
        kept = table.take(pa.array(made, pa.int64()))
        return self._recorded(kept, list(made.values()), [outcomes.get(i) for i in made])

    def _translated(self, rows: Sequence[Row]) -> Iterator[Outcome]:
        """Translates rows; those that a worker died with one by one, as often as allowed.

        These come first: if they kill the worker again, nothing else is lost with it.
        """
        if not rows:
            return
        import torch

        named = {row.row_id: row for row in rows}
        verdict = ray.get(self._control.verdict.remote(list(named)))
        if again := len(named) - len(verdict.together):
            self._control.add.remote({"again": again})
        yield from self._given_up(named, verdict)
        tries = [([named[name]], False) for name in verdict.alone]
        tries += [([named[name]], True) for name in verdict.last]
        tries += [([named[name] for name in verdict.together], False)]
        try:
            for some, tight in tries:
                yield from self._engine.translate(some, self._begin, tight=tight)
        except torch.AcceleratorError:
            os._exit(1)  # the device is lost for this process, another one may go on
        self._end()

    def _given_up(self, named: Mapping[str, Row], verdict: Verdict) -> Iterator[Outcome]:
        from pnp_batch.engine import Outcome

        for name in verdict.killed:
            what = f"its worker died in each of {ATTEMPTS} attempts to translate it, twice alone"
            hint = "often memory that ran out: use a smaller --resolution or fewer --workers"
            yield Outcome(named[name], error=ModelError(f"{what}; {hint}"))
        for name in verdict.expired:
            what = f"not translated within {self._work.row_timeout:g} s"
            yield Outcome(named[name], error=RowTimeout(f"{what}; --row-timeout sets the limit"))

    def _begin(self, rows: Sequence[Row]) -> bool:
        """Notes that a batch begins and gives it its time; False if nothing may begin any more."""
        ended, self._running = self._end_watch(), [row.row_id for row in rows]
        limit = self._work.row_timeout * len(rows)
        self._watchdog = threading.Timer(limit, self._give_up, [list(self._running)])
        self._watchdog.daemon = True
        self._watchdog.start()
        return bool(ray.get(self._control.begin.remote(self._running, ended)))

    def _end(self) -> None:
        ray.get(self._control.end.remote(self._end_watch()))

    def _end_watch(self) -> list[str]:
        if self._watchdog is not None:
            self._watchdog.cancel()
        ended, self._running = self._running, []
        return ended

    def _give_up(self, names: list[str]) -> None:
        # What hangs in native code cannot be interrupted: the process ends, Ray starts another one,
        # which finds out how to go on.
        ray.get(self._control.expire.remote(names))
        os._exit(1)

    def _refuse_general_failure(self, outcomes: Iterable[Outcome]) -> None:
        """Raises what was raised for a row, as long as no row at all has been translated."""
        outcomes = list(outcomes)
        self._has_worked |= any(outcome.image is not None for outcome in outcomes)
        causes = [outcome.cause for outcome in outcomes if outcome.cause is not None]
        if causes and not self._has_worked:
            counts = ray.get(self._control.seen.remote()).counts
            self._has_worked = bool(counts.get(results.OK))
            if not self._has_worked:
                raise causes[0]

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        keys: dict[str, set[str]] = {"cached": set(), "inverted": set()}
        for outcome in outcomes:
            if outcome.latents_key:
                keys["cached" if outcome.cached else "inverted"].add(outcome.latents_key)
        keys["cached"] -= keys["inverted"]
        counts = {name: len(found) for name, found in keys.items()}
        if self._cache is not None:
            counts["damaged"], self._cache.damaged = self._cache.damaged, 0
        if "_engine" in self.__dict__:  # else no row has needed it
            spent = round(1000 * self._engine.unet.watch.seconds())
            counts["unet_ms"], self._unet_ms = spent - self._unet_ms, spent
        self._control.add.remote(counts)

    def _row(self, record: Mapping[str, Any]) -> Row:
        from pnp_batch.origins import Row

        side = self._work.reading.resolution
        pixels = record["pixels"]
        return Row(
            row_id=record["row_id"],
            guidance=record["guidance"],
            pixels=None if pixels is None else Image.frombytes("RGB", (side, side), pixels),
            prompt=record["prompt"],
            method=record["method"],
            place=Place(*(record[name] for name in PLACE)),
            negative_prompt=record["negative_prompt"] or "",
            source_prompt=record["source_prompt"] or "",
            seed=record["seed"],
            guidance_scale=record["guidance_scale"],
            parameters=json.loads(record["shared"]),
            own=json.loads(record["own"]),
        )

    def _recorded(
        self, table: pa.Table, images: list[bytes | None], outcomes: list[Outcome | None]
    ) -> pa.Table:
        """The rows as the results hold them, but for what the sink adds; and their pixels."""
        side = self._work.reading.resolution
        columns: dict[str, list[Any]] = {
            "pixels": images,
            "width": [None if image is None else side for image in images],
            "height": [None if image is None else side for image in images],
            "status": [results.ERROR if image is None else results.OK for image in images],
            "latents_key": [outcome.latents_key if outcome else None for outcome in outcomes],
            "seconds": [outcome.seconds if outcome else None for outcome in outcomes],
            "resolution": [side] * len(images),
            "fit": [self._work.reading.fit] * len(images),
            sink.SHOWN: [_shown(outcome) if outcome else None for outcome in outcomes],
        }
        for name, told in (("error_type", kind), ("error_message", text)):
            loaded = table[name].to_pylist()
            columns[name] = [
                told(outcome.error) if outcome else before
                for outcome, before in zip(outcomes, loaded, strict=True)
            ]
        columns |= self._parameters(table)
        fields = [f for f in self._work.schema if f.name not in sink.ADDED]
        fields += [pa.field(name, pa.binary()) for name in ("pixels", sink.SHOWN)]
        return pa.table(
            [
                pa.array(columns[f.name], f.type)
                if f.name in columns
                else table[f.name if f.name in results.SCHEMA.names else EXTRA + f.name]
                for f in fields
            ],
            names=[f.name for f in fields],
        )

    def _parameters(self, table: pa.Table) -> dict[str, list[Any]]:
        """The parameters that shaped each row: those its method uses."""
        used = [methods.KNOWN.get(name) for name in table["method"].to_pylist()]
        sampling = self._work.sampling
        columns: dict[str, list[Any]] = {
            "steps": [sampling.steps if m and m.uses_model else None for m in used],
            "deep_every": [sampling.deep_every if m and m.uses_model else None for m in used],
            "inversion_steps": [sampling.inversion if m and m.inverts else None for m in used],
        }
        for name in OWN_COLUMNS:
            columns[name] = [
                value if method and name in method.parameters else None
                for method, value in zip(used, table[name].to_pylist(), strict=True)
            ]
        both = zip(table["shared"].to_pylist(), table["own"].to_pylist(), strict=True)
        columns["parameters"] = [_told(*texts) for texts in both]
        return columns


def _shown(outcome: Outcome) -> bytes | None:
    """The file of the pictures that a method shows beside a row's result, side by side."""
    pictures = list(outcome.pictures().values())
    if outcome.image is None or not pictures:
        return None
    width, height = outcome.image.size
    sheet = Image.new("L", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * width, 0))
    return source.encode(sheet, "png")


def _told(shared: str | None, own: str | None) -> str | None:
    """A row's parameters but for those that have columns of their own; None where it has none."""
    values = {**json.loads(shared or "{}"), **json.loads(own or "{}")}
    told = {name: value for name, value in values.items() if name not in OWN_COLUMNS}
    return as_json(told) if told else None
