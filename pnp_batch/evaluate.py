"""The evaluation of an output: its recorded rows in, their scores as columns of the results out.

Rows that have been scored with the same measures are left alone, so that a second call does only
what is missing. The summary goes to `evaluation.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from pnp_batch import cluster, lease, manifest, methods, record, results
from pnp_batch.compaction import Compaction
from pnp_batch.config import RunConfig
from pnp_batch.errors import EXIT_INTERRUPTED, EXIT_OK, InvalidConfig, did_you_mean
from pnp_batch.evaluation import FAMILIES, Measures, Named, measures
from pnp_batch.execution import Execution
from pnp_batch.job import policy
from pnp_batch.lease import Lease
from pnp_batch.listing import Listing
from pnp_batch.manifest import Manifest
from pnp_batch.pipeline import Interrupted, Progress
from pnp_batch.resources import NoGpu
from pnp_batch.scores import REASON, SCORED_WITH
from pnp_batch.scoring import Evaluation, Unscored
from pnp_batch.stages import PARTS, Reading, Scoring
from pnp_batch.storage import Storage
from pnp_batch.summary import Table, grouping, tables

NAME = "evaluation.json"


@dataclass(frozen=True)
class Settings:
    """What to measure, and on what.

    Attributes:
        families: of scores, all of `evaluation.FAMILIES` if empty.
        named: networks that are not the default ones.
        by: column whose values are told apart in the summary; None looks for one that suits.
        device: `auto` is a GPU where the cluster has one.
        workers: actors that each hold the networks; None is one for each GPU or core.
        address: of an existing Ray cluster.
        wait: while a run is writing to the output, instead of refusing.
        again: score also what has been scored.
    """

    families: tuple[str, ...] = ()
    named: Named = field(default_factory=Named)
    by: str | None = None
    device: str = "auto"
    workers: int | None = None
    address: str | None = None
    wait: bool = False
    again: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        rows: with a picture.
        scored: by this call; the others had their scores.
        networks: by family, the network or why there is none.
        tables: means with intervals, by method and by family of prompts.
    """

    output: str
    rows: int
    scored: int
    seconds: float
    exit_code: int
    networks: dict[str, str]
    tables: tuple[Table, ...]


Listener = Callable[[Progress], None]


def evaluate(uri: str, settings: Settings, listener: Listener | None = None) -> Evaluated:
    """Scores the translated rows of an output, on Ray as a run is.

    Args:
        uri: the output of a run.
        settings: what to measure.
        listener: called with the progress, a few times a second.

    Raises:
        InvalidConfig: there is no run at `uri`, an unknown family or column, or the manifest has a
            column with the name of a score.
        InvalidModel: a named network cannot be had.
        OutputBusy: a run is writing there.
    """
    begun = time.monotonic()
    say = listener or (lambda progress: None)
    output = Storage(uri)
    config = record.of_run(uri).as_config(output.uri)
    wanted = measures(_families(settings.families), config.model, settings.named)
    with lease.held(output, wait=settings.wait) as mine:
        results.settle(output)
        work, read = _prepared(output, config, wanted)
        unscored = Unscored(work, again=settings.again)
        grouping(unscored.schema, settings.by)  # refused before the work, not after it
        scored, state = 0, record.DONE
        if len(unscored):
            say(_progress(unscored, begun, "starting Ray"))
            listing = Listing(read, config, methods.KNOWN)  # its rows are gone when it is
            unscored.find(listing)
            with cluster.connected(settings.address, settings.workers):
                watched = partial(_watched, begun, mine, say)
                scored, state = _score(work, unscored, settings, watched)
            results.settle(output)
        found = Evaluated(
            output=output.uri,
            rows=unscored.total,
            scored=scored,
            seconds=round(time.monotonic() - begun, 3),
            exit_code=EXIT_INTERRUPTED if state == record.INTERRUPTED else EXIT_OK,
            networks=wanted.told,
            tables=tuple(tables(output, settings.by)),
        )
        body = json.dumps(asdict(found), indent=2, ensure_ascii=False)
        output.write(NAME, (body + "\n").encode())
    return found


def _families(asked: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in FAMILIES:
            raise InvalidConfig(f"--metrics {name}: unknown", did_you_mean(name, FAMILIES))
    return asked or tuple(FAMILIES)


def _prepared(output: Storage, config: RunConfig, wanted: Measures) -> tuple[Scoring, Manifest]:
    """What the stages need, and the manifest, which says where the guidance images are."""
    read = manifest.read(config.manifest)
    taken = {*wanted.columns, REASON, SCORED_WITH} & set(read.extra.names)
    if taken:
        raise InvalidConfig(
            f"the manifest's own column {min(taken)!r} has the name of a score",
            "leave that family out with --metrics, or rename the column and run anew",
        )
    side = int(record.of_run(output.uri).settings["resolution"])
    reading = Reading(policy(config, read.base), side, config.fit)
    return Scoring(output, wanted, "cpu", 1, reading), read


def _score(
    work: Scoring,
    unscored: Unscored,
    settings: Settings,
    watched: Callable[[Execution, Unscored, Compaction], None],
) -> tuple[int, str]:
    """Scores on the connected cluster; how many rows, and the state in which that ended."""
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and cluster.gpus() > 0)
    available = int(cluster.gpus()) if on_gpu else cluster.cores()
    if on_gpu and not available:
        raise NoGpu("--device cuda, but the cluster has no GPU", "use --device cpu")
    workers = min(settings.workers or max(1, available), len(unscored))
    device = "cuda" if on_gpu else "cpu" if settings.device == "auto" else settings.device
    threads = cluster.threads(workers)
    work = replace(work, device=device, threads=threads)
    graph = Evaluation(work, unscored, workers, 1.0 if on_gpu else 0.0)
    with Execution(graph) as execution, Compaction(work.output, unscored.names) as compaction:
        watched(execution, unscored, compaction)
    if execution.error is not None:
        raise execution.error
    return execution.counts[results.OK], execution.state


def _watched(
    begun: float,
    mine: Lease,
    say: Listener,
    execution: Execution,
    unscored: Unscored,
    compaction: Compaction,
) -> None:
    for _ in execution.watch():
        compaction.look(execution.counts[PARTS])
        say(_progress(unscored, begun, execution.phase, execution.counts[results.OK]))
        mine.check()
        if execution.signals > 1:
            raise Interrupted("stopped at once", "run the same command again to go on")


def _progress(unscored: Unscored, begun: float, phase: str, scored: int = 0) -> Progress:
    return Progress(
        total=unscored.total,
        done=unscored.total - unscored.count + scored,
        failed=0,
        phase=phase,
        session_done=scored,
        seconds=time.monotonic() - begun,
    )
