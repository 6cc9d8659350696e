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
from pnp_batch.diffusion.unet import UNet
from pnp_batch.plan import plan
from pnp_batch.steps import Sampling
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


@pytest.mark.parametrize(("prompts", "every"), [(1, 1), (4, 1), (10, 1), (1, 2), (4, 3)])
def test_no_more_is_computed_than_the_same_pictures_need(prompts, every, model, tmp_path):
    texts = [f"a drawing number {n}" for n in range(prompts)]
    picture = draw(random_spec(Random(1)), resolution=64).image.resize((32, 32))
    picture.save(tmp_path / "a.png")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"row_id": "r", "image": "a.png", "prompt": texts}))
    output = str(tmp_path / "out")
    settings = {"steps": STEPS, "deep_every": every}
    bound = plan(RunConfig(str(manifest), output, model=model, device="cpu", **settings))
    evaluations = bound.unet_evaluations
    assert (evaluations["inversion"], evaluations["translated"]) == (STEPS, 2 * STEPS * prompts)
    # For all prompts together, in a step each; a shallow one has no feature site.
    assert evaluations["guidance"] == (4 if every == 1 else 3)

    translator = Translator.load(model, cache=str(tmp_path / "latents"))
    for text in ("", *texts):  # the plan does not count the text encoder
        translator.model.text(text)
    made = []
    cold = spent(lambda: made.append(translator.translate([picture], [texts], **settings)))
    assert cold == pytest.approx(bound.tflop, rel=NEAR)
    warm = spent(lambda: made.append(translator.translate([picture], [texts], **settings)))
    assert all(
        one.tobytes() == other.tobytes() for one, other in zip(*made[0], *made[1], strict=True)
    )
    encoded = spent(lambda: translator.model.encode(picture))
    latents, empty = torch.zeros(1, 4, tiny.SIDE, tiny.SIDE), translator.model.text("")[None]
    unet = UNet(translator.model.unet)
    whole, shallow = Sampling(STEPS, deep_every=every).evaluations(STEPS)
    inverted = whole * spent(lambda: unet(latents, 1, empty))
    deep = torch.zeros(1, unet.module.config.block_out_channels[0], tiny.SIDE, tiny.SIDE)
    inverted += shallow * spent(lambda: unet.shallow(latents, 1, empty, deep))
    # With the inversion in the cache, neither it nor the encoding is spent.
    assert warm == pytest.approx(bound.tflop - inverted - encoded, rel=NEAR)
