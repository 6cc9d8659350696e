"""What a translation costs: the FLOPs that are spent are those of the bound, and `plan` knows them.

The bound counts what the same pictures need with nothing approximated: one inversion and one
guidance branch for all prompts of an image, the branch as far and as long as something is injected
from it, and nothing computed that is injected.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from random import Random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pnp_batch import Translator
from pnp_batch.config import RunConfig
from pnp_batch.plan import plan
from pnp_batch.world import draw, random_spec
from tests import tiny

STEPS = 5
NEAR = 0.03


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1"))


def spent(call):
    """TFLOP of a call. The counter has no formula for the CPU's fused attention, so not fused."""
    counter = FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(counter)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        call()
    return counter.get_total_flops() / 1e12


@pytest.mark.parametrize("prompts", [1, 4, 10])
def test_no_more_is_computed_than_the_same_pictures_need(prompts, model, tmp_path):
    texts = [f"a drawing number {n}" for n in range(prompts)]
    picture = draw(random_spec(Random(1)), resolution=64).image.resize((32, 32))
    picture.save(tmp_path / "a.png")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"row_id": "r", "image": "a.png", "prompt": texts}))
    output = str(tmp_path / "out")
    bound = plan(RunConfig(str(manifest), output, model=model, steps=STEPS, device="cpu"))
    evaluations = bound.unet_evaluations
    assert (evaluations["inversion"], evaluations["translated"]) == (STEPS, 2 * STEPS * prompts)
    assert evaluations["guidance"] == 4  # in a step each, for all prompts together

    translator = Translator.load(model, cache=str(tmp_path / "latents"))
    for text in ("", *texts):  # the plan does not count the text encoder
        translator.model.text(text)
    made = []
    cold = spent(lambda: made.append(translator.translate([picture], [texts], steps=STEPS)))
    assert cold == pytest.approx(bound.tflop, rel=NEAR)
    warm = spent(lambda: made.append(translator.translate([picture], [texts], steps=STEPS)))
    assert all(
        one.tobytes() == other.tobytes() for one, other in zip(*made[0], *made[1], strict=True)
    )
    encoded = spent(lambda: translator.model.encode(picture))
    latents, empty = torch.zeros(1, 4, tiny.SIDE, tiny.SIDE), translator.model.text("")[None]
    full = spent(lambda: translator.model.unet(latents, 1, empty))
    # With the inversion in the cache, neither it nor the encoding is spent.
    assert warm == pytest.approx(bound.tflop - STEPS * full - encoded, rel=NEAR)
