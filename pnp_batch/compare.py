"""The comparison: several variants over one manifest in, an output of each and what they say out.

Each variant is an ordinary output below the comparison's; all of them share one latent cache and
one Ray. What is done stays done: the same comparison again runs and scores only what is missing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pnp_batch import cluster, manifest, pipeline, record, results
from pnp_batch import config as configuration
from pnp_batch.config import RunConfig
from pnp_batch.errors import (
    EXIT_BROKEN,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_OK,
    EXIT_TOO_MANY_FAILED,
    InvalidConfig,
    JobError,
)
from pnp_batch.evaluate import Settings, evaluate
from pnp_batch.pipeline import Interrupted, Listener, Progress
from pnp_batch.report import trade
from pnp_batch.report.comparison import Measured, differences, markdown, measured
from pnp_batch.report.grid import write_grid
from pnp_batch.report.page import FOLDER, write_page
from pnp_batch.report.reported import Reported, reported
from pnp_batch.storage import Storage, absolute
from pnp_batch.variants import Variant
from pnp_batch.world.compare import Estimate

NUMBERS, TABLE, PLOT = "comparison.json", "comparison.md", "comparison.svg"
# Rows of each output with pictures on the page, which would else be as large as all outputs.
SHOWN = 1_000
SHOWN_NETWORKS = ("clip", "structure")  # whose scores stand in the table
WORST = (EXIT_OK, EXIT_TOO_MANY_FAILED, EXIT_INVALID, EXIT_BROKEN)
# What is known only of the model or on the device.
UNSETTLED = ("model_digest", "resolution", "device", "dtype")


@dataclass(frozen=True)
class Ended:
    """How a variant ended.

    Attributes:
        name: of the variant.
        output: where its pictures are.
        exit_code: as `run` or `evaluate` would give it.
        error, hint: what went wrong; empty if nothing did.
        networks: that it was scored with, by family.
    """

    name: str
    output: str
    exit_code: int = EXIT_OK
    error: str = ""
    hint: str = ""
    networks: Mapping[str, str] = field(default_factory=dict)

    def failed(self, error: JobError) -> Ended:
        """The same, after an error."""
        return replace(self, exit_code=error.exit_code, error=str(error), hint=error.hint)


@dataclass(frozen=True)
class Comparison:
    """What a comparison has found.

    Attributes:
        exit_code: the worst of the variants'.
        ended: all variants, in their order.
        measured: those of them that have results.
        apart: by how much each of the others scores above the first of these, row by row.
        files: what was written, by what it is.
    """

    output: str
    exit_code: int
    ended: tuple[Ended, ...]
    measured: tuple[Measured, ...]
    apart: Mapping[str, Mapping[str, Estimate]]
    files: Mapping[str, str]


def compare(
    config: RunConfig, chosen: Sequence[Variant], listener: Listener | None = None
) -> Comparison:
    """Runs variants, scores them and reports on them together.

    Args:
        config: the job that all variants have in common; theirs lie in its output.
        chosen: the variants.
        listener: called with the progress, a few times a second.

    Returns:
        What was found. A variant that failed has its error there; the others go on.

    Raises:
        InvalidManifest, InvalidConfig, OutputMismatch: this cannot be compared.
        ClusterUnavailable: there is no Ray.
        Interrupted: a signal came; what was in flight is recorded.
    """
    config = configuration.with_values(config, output=absolute(config.output))
    jobs = [variant.job(config) for variant in chosen]
    _check(config, chosen, jobs)
    ended = [Ended(variant.text, job.output) for variant, job in zip(chosen, jobs, strict=True)]
    say = listener or (lambda progress: None)
    with cluster.connected(config.address, config.most_workers):
        for work, of in ((_run, ""), (_score, "scores of ")):
            for number, job in enumerate(jobs):
                told = f"{of}{ended[number].name} ({number + 1} of {len(jobs)})"
                try:
                    ended[number] = work(job, ended[number], _named(told, say))
                except JobError as error:
                    if error.exit_code == EXIT_INTERRUPTED:
                        raise
                    ended[number] = ended[number].failed(error)
    return _reported(config, ended)


def _check(config: RunConfig, chosen: Sequence[Variant], jobs: Sequence[RunConfig]) -> None:
    """Refuses before any work what cannot be compared."""
    if Storage(config.output).exists(record.NAME):
        raise InvalidConfig(
            f"{config.output} is the output of a run", "use another --output for a comparison"
        )
    columns = manifest.read(config.manifest).schema.names
    for variant, job in zip(chosen, jobs, strict=True):
        for name in ("method", *variant.values):
            if name in columns:
                raise InvalidConfig(
                    f"the manifest's column {name!r} would override what {variant.text} sets",
                    "compare a manifest without that column",
                )
        record.refuse_other(Storage(job.output), configuration.shaping(job), ignore=UNSETTLED)


def _named(name: str, say: Listener) -> Listener:
    """A listener that says which variant the progress is of."""

    def listener(progress: Progress) -> None:
        say(replace(progress, phase=f"{name} {progress.phase}"))

    return listener


def _run(job: RunConfig, ended: Ended, say: Listener) -> Ended:
    """Translates what is missing of a variant."""
    found = pipeline.run(job, say)
    if found.exit_code == EXIT_INTERRUPTED:
        raise Interrupted("interrupted, what was in flight is recorded")
    if found.exit_code != EXIT_TOO_MANY_FAILED:
        return ended
    told = f"{found.summary.failed} of {found.total} rows failed"
    hint = f"mend them, then: pnp-batch retry {shlex.quote(found.output)}"
    return replace(ended, exit_code=found.exit_code, error=told, hint=hint)


def _score(job: RunConfig, ended: Ended, say: Listener) -> Ended:
    """Scores what is not scored yet of a variant."""
    if ended.exit_code == EXIT_INVALID or not _has_rows(ended.output):
        return ended
    settings = Settings(device=job.device, workers=job.workers, address=job.address, wait=job.wait)
    found = evaluate(ended.output, settings, say)
    if found.exit_code == EXIT_INTERRUPTED:
        raise Interrupted("interrupted, what was scored is recorded")
    return replace(ended, networks=found.networks)


def _has_rows(output: str) -> bool:
    """Whether there is a picture to score."""
    return bool(results.recorded(Storage(output)).ok.any())


def _reported(config: RunConfig, ended: Sequence[Ended]) -> Comparison:
    """Writes what the outputs say together."""
    good = [one for one in ended if one.exit_code != EXIT_INVALID]
    there = [one for one in good if Storage(one.output).exists(record.NAME)]
    code = max((one.exit_code for one in ended), key=WORST.index)
    outputs = reported([one.output for one in there], SHOWN, [one.name for one in there])
    told = tuple(map(measured, outputs))
    apart = differences(outputs)
    files = _files(config, outputs) if outputs else {}
    found = Comparison(config.output, code, tuple(ended), told, apart, files)
    if outputs:
        place = Storage(config.output)
        place.write(TABLE, markdown(told, apart, list(_notes(config, found))).encode())
        body = json.dumps(as_dict(config, found), indent=2, ensure_ascii=False)
        place.write(NUMBERS, f"{body}\n".encode())
    return found


def _files(config: RunConfig, outputs: Sequence[Reported]) -> dict[str, str]:
    """Writes what people look at, and says what there will be."""
    place = Storage(config.output)
    files = {"report": write_page(outputs, f"{config.output}/{FOLDER}", SHOWN)}
    sheet = write_grid(outputs, place)
    if sheet:
        files["sheet"] = sheet
    drawn = trade.plot(trade.levels(outputs), inline=False)
    if drawn:
        place.write(PLOT, drawn.encode())
        files["plot"] = f"{config.output}/{PLOT}"
    return files | {"table": f"{config.output}/{TABLE}", "numbers": f"{config.output}/{NUMBERS}"}


def as_dict(config: RunConfig, found: Comparison) -> dict[str, Any]:
    """A comparison as JSON holds it: what it is of, and for each variant how it is and ended."""
    numbers = {one.name: asdict(one) for one in found.measured}
    return {
        "manifest": config.manifest,
        "model": config.model,
        "output": found.output,
        "exit_code": found.exit_code,
        "networks": _networks(found),
        "differences": {
            name: {score: asdict(mean) for score, mean in own.items()}
            for name, own in found.apart.items()
        },
        "variants": [asdict(one) | numbers.get(one.name, {}) for one in found.ended],
        "files": dict(found.files),
    }


def _networks(found: Comparison) -> dict[str, str]:
    return {family: told for one in found.ended for family, told in one.networks.items()}


def _notes(config: RunConfig, found: Comparison) -> Iterator[str]:
    """What stands below the table."""
    rows = max(one.rows for one in found.measured)
    yield (
        f"{rows:,} rows of {PurePosixPath(config.manifest).name}, model {config.model}, "
        f"{config.steps} steps. Means with 95 % intervals: ↑ more is better, ↓ less is better. "
        "UNet evaluations and seconds are those of a row; rows of one guidance image share its "
        "inversion, whose seconds count for the variant that made it."
    )
    networks = {name: told for name, told in _networks(found).items() if name in SHOWN_NETWORKS}
    if networks:
        yield "Networks: " + ", ".join(f"{name} {told}" for name, told in networks.items()) + "."
    for one in found.measured:
        if one.trained:
            yield (
                f"`{one.name}` tunes the denoiser for each pair of source and target text, with "
                f"{one.trained:,} evaluations that are not among those of a row."
            )
    yield from (f"`{one.name}`: {one.error}." for one in found.ended if one.error)
