"""P5, jobs share a cache, and one output has one writer.

Three drivers begin on one output at the same moment, one of them with `--wait`: one at a time
writes, who does not wait is refused. Several jobs fill one latent cache at once.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from tests import tiny
from tests.faults import jobs, servers
from tests.faults.oracle import Expectation, judge, judge_cache, row_ids
from tests.faults.places import Folder, Place, Prefix
from tests.faults.promise import Outcome

ROWS, PICTURES = 40, 8
COPY = ("--method", "copy", "--workers", "1")
TINY = ("--steps", "2", "--batch-size", "2", "--workers", "1")
REFUSED = re.compile(r"error: another run is writing to [^\n]+\nhint: [^\n]*--wait[^\n]*\n?\Z")
# Fills a cache with the inversions of pictures: what a run's workers do, with no Ray to start.
INVERTER = """
import io, os, sys
import torch
from PIL import Image
from pnp_batch import Translator
from pnp_batch.world import samples
torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # as a run's one actor, for the same bytes
rows = list(samples.many_rows(int(sys.argv[3]), resolution=32))
pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
translator = Translator.load(sys.argv[1], cache=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
translator.translate(pictures, [row["prompt"] for row in rows], steps=2, batch_size=2)
"""


def experiment(folder: Path, long: bool) -> Outcome:
    """One output; in the long form one cache too, for processes and real runs, and on stores."""
    parts = [one_output(folder / "output")]
    if long:
        parts += [inverters(folder / "inverters", 2)]
        parts += [one_output(folder / "moto", servers.moto())]
        parts += [one_output(folder / "weed", servers.seaweedfs())]
        parts += [one_cache(folder / f"{count} jobs", count) for count in (2, 4)]
        parts += [one_cache(folder / "cache moto", 2, servers.moto())]
    return Outcome.joined(parts)


def one_output(
    folder: Path, server: AbstractContextManager[servers.Server] | None = None
) -> Outcome:
    """Three drivers at once: exactly one that did not wait is refused, or both are."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jobs.manifest(folder / "manifest.parquet", ROWS)
    with server or nullcontext() as real:
        store = real.store if real else None
        place: Place = Prefix(store, "output") if store else Folder(folder / "output")
        uri = store.uri("output") if store else str(folder / "output")
        environ = store.environ() if store else {}
        flags = (COPY, COPY, (*COPY, "--wait"))
        endings = _at_once([jobs.Job(manifest, uri, own, environ, place) for own in flags])
        findings = judge(place, Expectation(row_ids(manifest), may_fail=()))
    worked = sum(code == 0 for code, _ in endings)
    refused = sum(code == 1 and bool(REFUSED.search(told)) for code, told in endings[:2])
    if endings[2][0] != 0:
        findings.append(f"the run with --wait ended with {endings[2][0]}: {endings[2][1][-300:]}")
    if worked + refused != len(flags) or not refused:
        told = [f"{code}: {text[-200:]}" for code, text in endings]
        findings.append(f"of two runs without --wait one is to be refused: {told}")
    return Outcome(len(flags), 1, ROWS, tuple(findings))


def one_cache(
    folder: Path, count: int, server: AbstractContextManager[servers.Server] | None = None
) -> Outcome:
    """Several real runs at once, each with an output of its own, all with one cache.

    It holds what one run alone makes, and their pictures are that one's.
    """
    model = tiny.save_model(folder / "model", "sd1")
    manifest = jobs.manifest(folder / "manifest.parquet", PICTURES, resolution=32)
    alone = jobs.Job(manifest, str(folder / "alone"), (*TINY, "--model", str(model)))
    assert alone.run()[0] == 0
    with server or nullcontext() as real:
        store = real.store if real else None
        cache: Place = Prefix(store, "cache") if store else Folder(folder / "cache")
        uri = store.uri("cache") if store else str(folder / "cache")
        flags = (*TINY, "--model", str(model), "--cache", uri)
        environ = store.environ() if store else {}
        outputs = [str(folder / f"output {number}") for number in range(count)]
        started = [jobs.Job(manifest, output, flags, environ) for output in outputs]
        endings = _at_once(started)
        findings = [f"exit code {code}: {told[-300:]}" for code, told in endings if code]
        findings += judge_cache(cache, Folder(folder / "alone" / "latents"))
    for job in started:
        findings += judge(job.seen, Expectation(row_ids(manifest), may_fail=()), alone.seen)
    return Outcome(count + 1, 1, count * PICTURES, tuple(findings))


def inverters(folder: Path, count: int) -> Outcome:
    """Several processes fill one cache at the same moment: it is what one of them makes."""
    model = tiny.save_model(folder / "model", "sd1")
    _invert(model, folder / "reference", 1)
    _invert(model, folder / "cache", count)
    findings = judge_cache(Folder(folder / "cache"), Folder(folder / "reference"))
    return Outcome(0, 1, 0, tuple(findings))


def _invert(model: Path, cache: Path, count: int) -> None:
    command = [sys.executable, "-c", INVERTER, str(model), str(cache), str(PICTURES)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": jobs.ROOT}
    with ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(count)]
        for process in started:
            process.stdout.readline()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.close()
        codes = [process.wait() for process in started]
        assert not any(codes), codes


def _at_once(some: Sequence[jobs.Job]) -> list[tuple[int, str]]:
    """Starts jobs at the same moment; their exit codes and what they told."""
    with ExitStack() as stack:
        running = [stack.enter_context(job.started()) for job in some]
        return [(one.wait(), one.told()) for one in running]
