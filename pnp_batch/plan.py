"""The plan: a job in, what it will cost out. Loads no model and starts no cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pnp_batch import rates, source
from pnp_batch.config import RunConfig
from pnp_batch.errors import RowError
from pnp_batch.job import Job, prepare
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.rates import Rate
from pnp_batch.spending import encoded, firsts, published, spending
from pnp_batch.storage import Storage

# Achieved TFLOP/s of a worker that are assumed where none are given: about a third of a current
# data-centre GPU in half precision, and one core of a current CPU in single precision.
ASSUMED_TFLOPS = {"cuda": 150.0, "mps": 3.0, "cpu": 0.05}
# Images that are looked for in the cache: of a million, an inversion each would take hours to find.
SAMPLED = 10_000
BYTES_A_PIXEL = {"png": 1.6, "webp": 1.1, "jpg": 0.6}


@dataclass(frozen=True)
class Plan:
    """What a job will do and cost.

    Attributes:
        rows, done, failed, todo: rows asked for, recorded as ok, as failed, and to be done.
        images: distinct guidance images of the rows to be done.
        inversions_cached, inversions_missing: of the images that are inverted; where these are
            more than `SAMPLED`, by that many of them.
        unet_evaluations: in rows of a batch, by where they are spent.
        tflop, published_tflop: of the rows to be done; and what the published diffusers code
            spends on them at its defaults (999 inversion and 999 reconstruction steps, three
            whole evaluations a sampling step, each image again for each prompt).
        image_bytes, latent_bytes: to be written, the first estimated.
        workers: that the hours are counted for.
        tflops: the achieved TFLOP/s of all of them that the hours are counted with.
        tflops_from: `given`, `measured` by a run of this output or of the one that was named,
            `kept` of an earlier run on this machine, or `assumed` by device.
        tflops_of: what was measured, and when.
        hours: until it is done.
        worker_hours: of all workers together, which are GPU hours on GPUs.
        price: of the worker hours, None where no price is given.
    """

    rows: int
    done: int
    failed: int
    todo: int
    images: int
    inversions_cached: int
    inversions_missing: int
    unet_evaluations: Mapping[str, int]
    tflop: float
    published_tflop: float
    image_bytes: int
    latent_bytes: int
    device: str
    dtype: str
    workers: int
    tflops: float
    tflops_from: str
    tflops_of: str
    hours: float
    worker_hours: float
    price: float | None


@dataclass(frozen=True)
class Prices:
    """What an hour costs, in the user's currency: of all workers together, or of each."""

    together: float | None = None
    worker: float | None = None

    def of(self, hours: float, workers: int) -> float | None:
        """What so many hours of so many workers cost; None where no price is known."""
        if self.together is None and self.worker is None:
            return None
        return hours * ((self.together or 0.0) + workers * (self.worker or 0.0))


def plan(
    config: RunConfig,
    *,
    tflops: float | None = None,
    prices: Prices | None = None,
    like: str | None = None,
) -> Plan:
    """Counts what a job will do.

    Args:
        config: the job.
        tflops: achieved TFLOP/s of all workers together; if None, what a worker achieved in the
            latest run of the output or of `like`, in an earlier run of this model on such a device
            that this machine knows of, or a cautious guess by device.
        prices: of an hour.
        like: an output whose run had the same model on the same kind of device.

    Raises:
        JobError: the job would be refused, or nothing was measured at `like`.
    """
    job = prepare(config)
    device, dtype = _device(job)
    good = job.good
    inverted = firsts(job, encoded(job, good, inverted=True))
    cached = _cached(job, inverted, dtype)
    missing = len(inverted) - cached
    spent = spending(job, good, missing)
    measured = None if tflops is not None else _measured(job, device, dtype, like)
    workers = _workers(job, measured)
    rate = tflops or (measured.tflops if measured else ASSUMED_TFLOPS[device]) * workers
    hours = spent.tflop / rate / 3600
    side = int(job.settings["resolution"])
    kept = job.config.steps * _latents(job, side) * (4 if dtype == "float32" else 2)
    pixel = BYTES_A_PIXEL[job.config.image_format]
    return Plan(
        rows=job.total,
        done=job.recorded.done,
        failed=job.recorded.failed,
        todo=len(job.todo),
        images=len(firsts(job, good)),
        inversions_cached=cached,
        inversions_missing=missing,
        unet_evaluations=dict(spent.evaluations),
        tflop=spent.tflop,
        published_tflop=published(job, good),
        image_bytes=int(len(good) * side * side * pixel),
        latent_bytes=missing * kept if job.config.cache_uri else 0,
        device=device,
        dtype=dtype,
        workers=workers,
        tflops=rate,
        tflops_from=measured.source if measured else "assumed" if tflops is None else "given",
        tflops_of=str(measured or ""),
        hours=hours,
        worker_hours=hours * workers,
        price=prices.of(hours, workers) if prices else None,
    )


def _measured(job: Job, device: str, dtype: str, like: str | None) -> Rate | None:
    """What one worker has achieved: here, there, or wherever this machine knows of."""
    if like is not None:
        return rates.of_output(like)
    found = rates.of_record(job.earlier) if job.earlier else None
    return found or rates.kept(str(job.model.digest), device, dtype)


def _workers(job: Job, measured: Rate | None) -> int:
    """The workers asked for; if nobody said, as many as were measured, or one."""
    return job.config.most_workers or (measured.workers if measured else 1)


def _device(job: Job) -> tuple[str, str]:
    """Device and dtype: those asked for, of an earlier run of the output, or of this machine."""
    known: Mapping[str, Any] = job.earlier.settings if job.earlier else {}
    device, dtype = (
        known.get(name, "auto") if job.settings[name] == "auto" else job.settings[name]
        for name in ("device", "dtype")
    )
    if device == "auto":
        device = "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return str(device), str(dtype)


def _cached(job: Job, images: np.ndarray, dtype: str) -> int:
    """How many inversions the cache holds, of many images by a sample of them.

    Images are opened only if it holds any at all.
    """
    if job.config.cache_uri is None:
        return 0
    cache = LatentCache(Storage(job.config.cache_uri))
    if not len(images) or cache.storage.is_empty():
        return 0
    some = images[:: -(-len(images) // SAMPLED)]
    side = int(job.settings["resolution"])
    inversion = Inversion.of(job.config.sampling, job.model.digest, side, dtype)

    def found(row: Mapping[str, Any]) -> bool:
        try:
            picture = source.open_image(row["image"], row["image_bytes"], job.policy)
            image = source.prepare(picture, side, job.config.fit)
        except RowError:
            return False
        key = inversion.key(image.tobytes(), row["source_prompt"] or "")
        return cache.storage.exists(cache.name(key))

    columns = ["image", "image_bytes", "source_prompt"]
    held = sum(source.for_each(job.listing.file, some, columns, found))
    return round(held * len(images) / len(some))


def _latents(job: Job, side: int) -> int:
    """Numbers in one latent image."""
    channels = int(job.model.configs["unet"]["in_channels"])
    return channels * (side // job.model.scale_factor) ** 2
