"""Memory format and compilation: the same picture, by other programs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch._inductor.config as inductor
from diffusers.models.attention_processor import AttnProcessor
from torch._dynamo.utils import counters

from pnp_batch.diffusion.sites import find_sites
from pnp_batch.diffusion.tuning import tune
from pnp_batch.diffusion.unet import UNet
from pnp_batch.models import StableDiffusion, find
from tests import tiny
from tests.diffusion.scene import TOLERANCE, both_schedules, far, rows

STEPS = 2
# Few shapes of blocks, so that there is little to compile.
NARROW = {"block_out_channels": (16, 16, 16, 16)}


@pytest.fixture
def model(tmp_path):
    """A model whose UNet is small to compile."""
    unet = tiny.new_unet("sd1", **NARROW)
    return StableDiffusion(find(str(tiny.save_model(tmp_path / "model", "sd1", unet))))


def translated(model, *layers):
    schedule, _ = both_schedules(STEPS)
    sites = find_sites(model.unet, *layers)
    return rows(STEPS, [0, 1]).translated(UNet(model.unet), schedule, 1, 1, sites)


def is_channels_last(module):
    weight = module.conv_in.weight
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_channels_last_gives_the_same_translation(model):
    expected = translated(model)
    tune(model, "channels-last", "fused", compiled=False)
    assert is_channels_last(model.unet)
    assert far(translated(model), expected) < TOLERANCE


def test_plain_attention_gives_the_same_translation(model):
    expected = translated(model)
    tune(model, "auto", "plain", compiled=False)
    assert {type(p) for p in model.unet.attn_processors.values()} == {AttnProcessor}
    assert 0 < far(translated(model), expected) < TOLERANCE
    tune(model, "auto", "fused", compiled=False)
    assert far(translated(model), expected) == 0


@pytest.mark.parametrize("memory_format", ["auto", "contiguous"])
def test_a_cpu_keeps_its_format_unless_asked(model, memory_format):
    tune(model, memory_format, "fused", compiled=False)
    assert not is_channels_last(model.unet)


# The published layers, and where features lie in blocks that are compiled. Each takes a minute,
# with programs without vectors, for which the C++ compiler needs half the time.
@pytest.mark.long
@pytest.mark.parametrize("layers", [((7, 8), (4, 5)), ()], ids=["deep", "published"])
def test_compiled_blocks_give_the_same_translation_with_injection(model, layers, monkeypatch):
    monkeypatch.setattr(inductor.cpp, "simdlen", 1)
    expected = translated(model, *layers)
    if layers:
        assert far(expected, translated(model)) > 10 * TOLERANCE
    counters.clear()
    tune(model, "auto", "fused", compiled=True)
    assert far(translated(model, *layers), expected) < TOLERANCE
    assert counters["stats"]["unique_graphs"] > 10  # blocks were compiled, and none given up
    assert not counters["graph_break"]


def test_without_a_compiler_the_option_is_refused():
    script = (
        "import torch\n"
        "from types import SimpleNamespace\n"
        "from pnp_batch.diffusion.tuning import tune\n"
        "model = SimpleNamespace(device=torch.device('cpu'))\n"
        "tune(model, 'contiguous', 'fused', compiled=True)\n"
    )
    env = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert "InvalidConfig: --compile: torch cannot compile here" in done.stderr
