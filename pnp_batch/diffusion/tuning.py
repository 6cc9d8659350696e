"""How a loaded model computes: the memory format of its layers, the kernels of its attention, and
which of its blocks are compiled.

None of it changes what is computed, only its last bits and its speed (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from pnp_batch.diffusion.sites import find_sites
from pnp_batch.errors import InvalidConfig
from pnp_batch.models import StableDiffusion

BLOCKS = (ResnetBlock2D, FeedForward)
# One for each block and batch shape; beyond its own limit torch would go on without a word, slowly.
PROGRAMS = 10_000


def tune(model: StableDiffusion, memory_format: str, attention: str, *, compiled: bool) -> None:
    """Sets how a model computes from now on.

    Args:
        model: the loaded model; its UNet and VAE are changed in place.
        memory_format: of feature maps: `contiguous`, `channels-last`, or `auto`, the faster one:
            contiguous, on CPUs and on an H100.
        attention: `fused` as PyTorch has it, or `plain`, which holds the probabilities of all
            places.
        compiled: compile residual blocks and feed-forwards, each at its first use with a shape.

    Raises:
        InvalidConfig: nothing can be compiled here; the model is as it was.
    """
    if compiled:
        _prepare(model.device)
    if memory_format == "channels-last":
        for part in (model.unet, model.vae):
            part.to(memory_format=torch.channels_last)
    kernels = AttnProcessor2_0 if attention == "fused" else AttnProcessor
    model.unet.set_attn_processor(kernels())
    if compiled:
        for block in _compilable(model.unet):
            block.compile(dynamic=False)


def _compilable(unet: nn.Module) -> list[Any]:
    """The blocks without a usual site of injection: a compiled block runs past hooks in it."""
    sites = find_sites(unet)
    hooked = {*sites.features, *sites.attention}
    blocks = [module for module in unet.modules() if isinstance(module, BLOCKS)]
    return [block for block in blocks if hooked.isdisjoint(block.modules())]


def _prepare(device: torch.device) -> None:
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = PROGRAMS
    # A worker may be killed at any time, and must leave no processes behind.
    inductor.compile_threads = 1
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except TorchDynamoException as error:
        told = str(error).strip().splitlines()[0]
        raise InvalidConfig(
            f"--compile: torch cannot compile here ({told})",
            "install a C++ compiler (on a GPU also triton), or leave the option out",
        ) from error
