"""The model that ships in the package: Plug-and-Play does with it what it is for.

A small part of what `jobs/measure_demo_model.py` measures in full, with bounds well below its
numbers, on pictures that the model has never seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pnp_batch import Translator
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.steps import Sampling
from pnp_batch.training import data
from pnp_batch.training.influence import influence
from pnp_batch.world import benchmark, compare, draw

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS, STEPS = 16, 10
Scores = list[dict[str, float]]


@pytest.fixture(scope="module")
def demo() -> Translator:
    return Translator.load("demo")


@pytest.fixture(scope="module")
def scored(demo: Translator) -> Callable[..., Scores]:
    """What a way to translate reaches on the first pairs of the benchmark."""
    cases = benchmark.cases(PAIRS)
    sources = [benchmark.drawn(case.source).image for case in cases]
    prompts = [case.prompt for case in cases]

    def score(**parameters: Any) -> Scores:
        made = demo.translate(sources, prompts, steps=STEPS, **parameters)
        return [benchmark.score(c, np.asarray(m)) for c, m in zip(cases, made, strict=True)]

    return score


@pytest.fixture(scope="module")
def pnp(scored: Callable[..., Scores]) -> Scores:
    return scored()


def test_the_text_is_followed(pnp: Scores) -> None:
    sources = [benchmark.drawn(case.source).image for case in benchmark.cases(PAIRS)]
    before = [
        benchmark.score(case, np.asarray(image))
        for case, image in zip(benchmark.cases(PAIRS), sources, strict=True)
    ]
    for measure in (*benchmark.TEXT, compare.ALL_TEXT):
        assert compare.mean(pnp, measure).mean > compare.mean(before, measure).mean
    assert compare.mean(pnp, compare.ALL_TEXT).mean > 0.6


def test_injection_keeps_structure(pnp: Scores, scored: Callable[..., Scores]) -> None:
    alone = scored(pnp_f_t=0.0, pnp_attn_t=0.0)
    assert compare.difference(pnp, alone, "edge_correlation").low > 0


def test_more_structure_than_sdedit_and_more_text(
    pnp: Scores, scored: Callable[..., Scores]
) -> None:
    sdedit = scored(method="sdedit", strength=0.7)
    assert compare.difference(pnp, sdedit, "edge_correlation").low > 0
    assert compare.difference(pnp, sdedit, compare.ALL_TEXT).mean > 0.05


def test_the_injected_layers_matter(demo: Translator) -> None:
    latents = torch.stack([demo.model.encode(draw(s).image) for s in data.specs(-1, 32)])
    levels = make_schedule(demo.model.files.configs["scheduler"], Sampling(1)).alpha_bar
    empty = demo.model.text("")[None]
    for time in (701, 901):
        found = influence(demo.model.unet, (latents[:16], latents[16:]), empty, time, levels[time])
        assert found["feature"] >= 0.1
        assert found["qk"] >= 0.1


def test_the_vae_keeps_pictures(demo: Translator) -> None:
    for spec in data.specs(-1, 8):
        image = draw(spec).image
        again = demo.model.decode(demo.model.encode(image))
        error = np.asarray(image, dtype=float) - np.asarray(again, dtype=float)
        assert 10 * np.log10(255**2 / (error**2).mean()) > 24  # the mean of many is above 30
