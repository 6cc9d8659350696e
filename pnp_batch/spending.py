"""What the rows of a job take: UNet evaluations and FLOPs, counted before any of them is made."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pnp_batch import methods
from pnp_batch.flops import UNetFlops, unet_flops, vae_flops
from pnp_batch.job import Job
from pnp_batch.layers import LAST
from pnp_batch.listing import GENERATED


def encoded(job: Job, rows: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Of some rows those whose image is encoded: to be inverted, or as it is."""
    used = {recipe["method"] for recipe in job.listing.recipes} - {None}
    known = {name: methods.get(name) for name in used}
    kinds = {n for n, method in known.items() if method.uses_model and method.inverts == inverted}
    meant = np.array([recipe["method"] in kinds for recipe in job.listing.recipes])
    given = job.listing.origin[rows] != GENERATED
    encoded: np.ndarray = rows[given & meant[job.listing.recipe[rows]]]
    return encoded


def firsts(job: Job, rows: np.ndarray) -> np.ndarray:
    """Of some rows the first one of each guidance image."""
    firsts: np.ndarray = rows[np.unique(job.listing.guidance[rows], return_index=True)[1]]
    return firsts


def _counted(job: Job) -> tuple[UNetFlops, float, float]:
    """FLOPs of a UNet evaluation and its parts, of encoding and of decoding an image."""
    side = int(job.settings["resolution"])
    tokens = int(job.model.configs["text_encoder"].get("max_position_embeddings", 77))
    unet = unet_flops(job.model.configs["unet"], side // job.model.scale_factor, tokens)
    return unet, *vae_flops(job.model.configs["vae"], side)


@dataclass(frozen=True)
class Spending:
    """What rows take.

    Attributes:
        evaluations: of the UNet, in rows of a batch, by where they are spent.
        tflop: of all networks.
    """

    evaluations: Counter[str]
    tflop: float


def spending(job: Job, rows: np.ndarray, inversions: int) -> Spending:
    """What inversions, guidance branches, and translated rows take.

    Args:
        job: the job.
        rows: indices of the rows to translate.
        inversions: images to invert.
    """
    unet, encode, decode = _counted(job)
    sampling = job.config.sampling
    each = (sampling.steps - 1) * (sampling.inversion // sampling.steps) + 1
    whole, shallow = sampling.evaluations(each)
    spent: Counter[str] = Counter({"inversion": inversions * each})
    flop = inversions * (whole * unet.full + shallow * unet.shallow + encode)
    flop += len(firsts(job, encoded(job, rows, inverted=False))) * encode
    drawn = len(firsts(job, rows[job.listing.origin[rows] == GENERATED]))
    whole, shallow = sampling.evaluations(sampling.steps)
    spent["generated_guidance"] = drawn * 2 * sampling.steps
    flop += drawn * (2 * whole * unet.full + 2 * shallow * unet.shallow + decode)
    for recipe, count, images in _recipes(job, rows):
        method = methods.get(str(recipe["method"]))
        cost = method.cost(sampling, json.loads(recipe["shared"]))
        guidance, translated = branches(cost, unet)
        translated += cost.decodes * 3 * decode
        spent["guidance"] += images * cost.guidance
        spent["translated"] += count * cost.row
        flop += images * guidance + count * (translated + decode * method.uses_model)
    return Spending(spent, flop / 1e12)


def branches(cost: methods.Cost, unet: UNetFlops) -> tuple[float, float]:
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


def each_takes(job: Job) -> tuple[float, float]:
    """TFLOP of a row to do, the mean of all, and of an inversion."""
    if not job.needs_model:
        return 0.0, 0.0
    good = job.good
    rows = spending(job, good, 0).tflop / len(good)
    return rows, spending(job, good[:0], 1).tflop


def published(job: Job, rows: np.ndarray) -> float:
    """TFLOP that the published diffusers code spends on the same rows at its defaults."""
    unet, encode, decode = _counted(job)
    each = (999 + 999 + 3 * 50) * unet.full + encode + decode
    return len(rows) * each / 1e12
