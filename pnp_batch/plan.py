"""The plan: a job in, what it will cost out. Loads no model and starts no cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pnp_batch import methods, record, source
from pnp_batch.config import RunConfig
from pnp_batch.errors import RowError
from pnp_batch.flops import UNetFlops, unet_flops, vae_flops
from pnp_batch.job import Job, prepare
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.layers import LAST
from pnp_batch.listing import GENERATED
from pnp_batch.status import measured_rate
from pnp_batch.storage import Storage

# Achieved TFLOP/s that are assumed where none are given: about a third of a current data-centre
# GPU in half precision, and one core of a current CPU in single precision.
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
        tflops: the achieved TFLOP/s that `hours` counts with.
        tflops_from: `given`, `measured` by the latest run of the output, or `assumed` by device.
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
    tflops: float
    tflops_from: str
    hours: float
    price: float | None


def plan(
    config: RunConfig, *, tflops: float | None = None, price_per_hour: float | None = None
) -> Plan:
    """Counts what a job will do.

    Args:
        config: the job.
        tflops: achieved TFLOP/s of all workers together; if None, what the latest run of the
            output achieved, or a cautious guess by device.
        price_per_hour: of all workers together.

    Raises:
        JobError: the job would be refused.
    """
    job = prepare(config)
    device, dtype = _device(job)
    good = job.todo[job.listing.usable[job.todo]]
    inverted = _firsts(job, _encoded(job, good, inverted=True))
    cached = _cached(job, inverted, dtype)
    missing = len(inverted) - cached
    spent = _spending(job, good, missing)
    rate, rate_from = _rate(job, spent.tflop / len(good) if len(good) else 0.0, device, tflops)
    hours = spent.tflop / rate / 3600
    side = int(job.settings["resolution"])
    kept = job.config.steps * _latents(job, side) * (4 if dtype == "float32" else 2)
    pixel = BYTES_A_PIXEL[job.config.image_format]
    return Plan(
        rows=job.total,
        done=job.recorded.done,
        failed=job.recorded.failed,
        todo=len(job.todo),
        images=len(_firsts(job, good)),
        inversions_cached=cached,
        inversions_missing=missing,
        unet_evaluations=dict(spent.evaluations),
        tflop=spent.tflop,
        published_tflop=_published(job, good),
        image_bytes=int(len(good) * side * side * pixel),
        latent_bytes=missing * kept if job.config.cache_uri else 0,
        device=device,
        dtype=dtype,
        tflops=rate,
        tflops_from=rate_from,
        hours=hours,
        price=None if price_per_hour is None else hours * price_per_hour,
    )


def _device(job: Job) -> tuple[str, str]:
    """Device and dtype: those asked for, of an earlier run of the output, or of this machine."""
    there = record.read(job.output)
    known: Mapping[str, Any] = there.settings if there else {}
    device, dtype = (
        known.get(name, "auto") if job.settings[name] == "auto" else job.settings[name]
        for name in ("device", "dtype")
    )
    if device == "auto":
        device = "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return str(device), str(dtype)


def _rate(job: Job, row_tflop: float, device: str, given: float | None) -> tuple[float, str]:
    """TFLOP/s of all workers together, and where the number is from."""
    if given is not None:
        return given, "given"
    rows_a_second = measured_rate(job.output)
    if rows_a_second and row_tflop:
        return rows_a_second * row_tflop, "measured"
    return ASSUMED_TFLOPS[device] * (job.config.workers or 1), "assumed"


def _encoded(job: Job, rows: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Of some rows those whose image is encoded: to be inverted, or as it is."""
    used = {recipe["method"] for recipe in job.listing.recipes} - {None}
    known = {name: methods.get(name) for name in used}
    kinds = {n for n, method in known.items() if method.uses_model and method.inverts == inverted}
    meant = np.array([recipe["method"] in kinds for recipe in job.listing.recipes])
    given = job.listing.origin[rows] != GENERATED
    encoded: np.ndarray = rows[given & meant[job.listing.recipe[rows]]]
    return encoded


def _firsts(job: Job, rows: np.ndarray) -> np.ndarray:
    """Of some rows the first one of each guidance image."""
    firsts: np.ndarray = rows[np.unique(job.listing.guidance[rows], return_index=True)[1]]
    return firsts


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


def _counted(job: Job) -> tuple[UNetFlops, float, float]:
    """FLOPs of a UNet evaluation and its parts, of encoding and of decoding an image."""
    side = int(job.settings["resolution"])
    tokens = int(job.model.configs["text_encoder"].get("max_position_embeddings", 77))
    unet = unet_flops(job.model.configs["unet"], side // job.model.scale_factor, tokens)
    return unet, *vae_flops(job.model.configs["vae"], side)


@dataclass(frozen=True)
class _Spending:
    evaluations: Counter[str]
    tflop: float


def _spending(job: Job, rows: np.ndarray, inversions: int) -> _Spending:
    """Evaluations and FLOPs: inversions, guidance branches, and translated rows."""
    unet, encode, decode = _counted(job)
    sampling = job.config.sampling
    each = (sampling.steps - 1) * (sampling.inversion // sampling.steps) + 1
    whole, shallow = sampling.evaluations(each)
    spent: Counter[str] = Counter({"inversion": inversions * each})
    flop = inversions * (whole * unet.full + shallow * unet.shallow + encode)
    flop += len(_firsts(job, _encoded(job, rows, inverted=False))) * encode
    drawn = len(_firsts(job, rows[job.listing.origin[rows] == GENERATED]))
    whole, shallow = sampling.evaluations(sampling.steps)
    spent["generated_guidance"] = drawn * 2 * sampling.steps
    flop += drawn * (2 * whole * unet.full + 2 * shallow * unet.shallow + decode)
    for recipe, count, images in _recipes(job, rows):
        method = methods.get(str(recipe["method"]))
        cost = method.cost(sampling, json.loads(recipe["shared"]))
        guidance, translated = _flops(cost, unet)
        translated += cost.decodes * 3 * decode
        spent["guidance"] += images * cost.guidance
        spent["translated"] += count * cost.row
        flop += images * guidance + count * (translated + decode * method.uses_model)
    return _Spending(spent, flop / 1e12)


def _flops(cost: methods.Cost, unet: UNetFlops) -> tuple[float, float]:
    """FLOPs of a guidance branch, and of a row, which does not compute what is injected."""
    guidance = cost.guidance_to_attention * unet.to_attention[max(cost.attention_layers)]
    guidance += cost.guidance_to_feature * unet.to_feature[max(cost.feature_layers)]
    guidance += cost.guidance_shallow * (unet.to_attention[LAST] - unet.deep)
    guidance += cost.guidance_shallow_to_feature * (unet.to_feature[LAST] - unet.deep)
    guidance += (cost.guidance_whole + 2 * cost.guidance_gradients) * unet.full
    row = (cost.translated + 2 * cost.gradients) * unet.full
    row += cost.translated_shallow * unet.shallow
    row -= cost.injected_features * sum(unet.feature_branch[n] for n in cost.feature_layers)
    row -= cost.injected_attention * sum(unet.qk[n] for n in cost.attention_layers)
    row -= cost.injected_shallow_features * unet.feature_branch[LAST]
    row -= cost.injected_shallow * unet.qk[LAST]
    # What is computed beside q, k and QK^T of a self-attention costs as much as these.
    row += cost.blended_attention * sum(unet.qk[n] for n in cost.attention_layers)
    row += cost.mapped * unet.to_maps
    return guidance, row


def _recipes(job: Job, rows: np.ndarray) -> list[tuple[dict[str, Any], int, int]]:
    """Each distinct recipe with its number of rows and of guidance branches.

    A branch serves the rows of one image that are in one batch.
    """
    found = []
    for code, recipe in enumerate(job.listing.recipes):
        own = rows[job.listing.recipe[rows] == code]
        if len(own):
            batch = job.places.number[own] // job.places.share[own]
            batches = int(batch.max()) + 1
            branches = len(np.unique(job.listing.guidance[own].astype(np.int64) * batches + batch))
            found.append((recipe, len(own), branches))
    return found


def _published(job: Job, rows: np.ndarray) -> float:
    unet, encode, decode = _counted(job)
    each = (999 + 999 + 3 * 50) * unet.full + encode + decode
    return len(rows) * each / 1e12
