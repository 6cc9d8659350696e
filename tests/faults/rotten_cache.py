"""P4, the latent cache is never torn or rotten: what is damaged there is made anew, and told.

A cache is filled without faults, spoilt entry by entry, and used again: by a translation in this
process, and in the long form by real runs. Besides, writers of entries are killed, and in the long
form the workers of real runs that share one cache.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random

from pnp_batch.storage import Storage
from tests import tiny
from tests.faults import alone, jobs, servers
from tests.faults.oracle import Expectation, judge, judge_cache, judge_same, row_ids
from tests.faults.places import Folder, Place, Prefix
from tests.faults.promise import Outcome

PICTURES = 8
# Puts entries of four megabytes until it is killed.
WRITER = """
import sys
import numpy as np
from pnp_batch.latents import LatentCache
from pnp_batch.storage import Storage
cache = LatentCache(Storage(sys.argv[1]))
print("begins", flush=True)
for number in range(10**6):
    cache.put(f"{number % 4:064x}", np.full((4, 4, 256, 256), number % 4, np.float32))
"""


def experiment(folder: Path, long: bool) -> Outcome:
    """Killed writers and damaged entries; in the long form for real runs, some on stores."""
    parts = [killed_writers(folder / "killed", 20 if long else 2), mended(folder / "mended")]
    if long:
        parts.append(damaged(folder / "damaged"))
        parts.append(damaged(folder / "moto", servers.moto()))
        parts.append(damaged(folder / "weed", servers.seaweedfs()))
        parts.append(killed_workers(folder / "workers"))
    return Outcome.joined(parts)


def mended(folder: Path) -> Outcome:
    """Six of eight entries are damaged, each in another way: a translation makes them anew."""
    manifest, reference, settings = _filled(folder)
    cache = Folder(folder / "again" / alone.LATENTS)
    spoilt = _spoil(reference, cache)
    alone.translated(manifest, settings, folder / "again")
    findings = judge_same(Folder(folder / "again"), Folder(folder / "alone"))
    return Outcome(0, len(spoilt), PICTURES, (*findings, *judge_cache(cache, reference)))


def damaged(folder: Path, server: AbstractContextManager[servers.Server] | None = None) -> Outcome:
    """The same in a real run, which says so."""
    manifest, reference, settings = _filled(folder, by_run=True)
    with server or nullcontext() as real:
        store = real.store if real else None
        cache: Place = Prefix(store, "cache") if store else Folder(folder / "cache")
        uri = store.uri("cache") if store else str(folder / "cache")
        spoilt = _spoil(reference, cache)
        flags = (*settings.flags, "--cache", uri)
        environ = store.environ() if store else {}
        job = jobs.Job(manifest, str(folder / "output"), flags, environ)
        code, told = job.run()
        findings = judge(job.seen, Expectation(row_ids(manifest), may_fail=()))
        findings += judge_cache(cache, reference)
        findings += [f"{n} is gone" for n in set(reference.names()) - set(cache.names())]
        findings += [] if code == 0 else [f"exit code {code}: {told[-300:]}"]
        lines = re.findall(r"(\d+) damaged latents replaced", told)
        if not lines or int(lines[-1]) != len(spoilt):
            findings.append(f"{len(spoilt)} entries were damaged, the log says {lines[-1:]}")
        counts = json.loads(job.seen.read("run.json"))["counts"]
        wanted = {"cached": PICTURES - len(spoilt), "inverted": len(spoilt)}
        if code == 0 and counts != {**wanted, "damaged": len(spoilt)}:
            findings.append(f"{len(spoilt)} entries were damaged, run.json says {counts}")
    return Outcome(1, len(spoilt), PICTURES, tuple(findings))


def _filled(folder: Path, *, by_run: bool = False) -> tuple[Path, Folder, alone.Settings]:
    """A manifest, a sound cache of its inversions, and how that was made.

    A run gives images other places in their batches than a translation in one process does, which
    makes a difference in the last bits.
    """
    settings = alone.Settings(str(tiny.save_model(folder / "model", "sd1")), batch_size=2)
    manifest = jobs.manifest(folder / "manifest.parquet", PICTURES, resolution=32)
    if by_run:
        code, told = jobs.Job(manifest, str(folder / "alone"), settings.flags).run()
        assert code == 0, told
    else:
        alone.translated(manifest, settings, folder / "alone")
    return manifest, Folder(folder / "alone" / alone.LATENTS), settings


def _spoil(reference: Folder, cache: Place) -> list[str]:
    """Copies the cache, all but two entries damaged; returns the names of those."""
    names = reference.names()
    sound = [reference.read(name) for name in names]
    ways: list[Callable[[bytes], bytes]] = [
        lambda data: _flipped(data, len(data) - 5),  # of the trajectory
        lambda data: _flipped(data, data.index(b"sha256:") + 9),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: sound[-1],  # whole and sound, of another image
    ]
    for name, data, way in zip(names, sound, [*ways, bytes, bytes], strict=True):
        cache.write(name, way(data))
    return names[: len(ways)]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def killed(folder: Path) -> Outcome:
    """Enough killed writers to meet one in the middle of an entry."""
    return killed_writers(folder, 10)


def killed_writers(folder: Path, kills: int) -> Outcome:
    """Writers of entries die at random moments: what is there is whole, what is not is swept."""
    dice, findings = Random(4), []
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=jobs.ROOT) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(dice.uniform(0.05, 0.3))
            writer.kill()
        entries = Folder(folder)
        findings += [said for said in judge_cache(entries) if "is no entry" not in said]
    Storage(str(folder)).sweep()  # as the next run does
    findings += judge_cache(Folder(folder))
    return Outcome(0, kills, 0, tuple(findings))


def killed_workers(folder: Path) -> Outcome:
    """The workers of a run are killed again and again while they fill a shared cache."""
    manifest, reference, settings = _filled(folder, by_run=True)
    shutil.rmtree(folder / "output", ignore_errors=True)
    flags = (*settings.flags, "--cache", str(folder / "cache"))
    job = jobs.Job(manifest, str(folder / "output"), flags)
    roles = (jobs.TRANSLATOR, jobs.DRIVER)
    codes = jobs.run_until_done(job, jobs.Kills(roles, rows=2), Random(5))
    findings = judge(job.seen, Expectation(row_ids(manifest), may_fail=()))
    findings += judge_cache(Folder(folder / "cache"), reference)
    return Outcome(len(codes), len(roles), PICTURES, tuple(findings))
