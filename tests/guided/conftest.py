"""A tiny model and the embedded CLIP, made once for the tests of the guided methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pnp_batch.diffusion.critic import Critic, critic
from pnp_batch.models import StableDiffusion, find
from tests import tiny

if TYPE_CHECKING:
    from transformers import CLIPModel


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    """A tiny model for pictures of 32 x 32 that predicts noise."""
    folder = tmp_path_factory.mktemp("model") / "sd1"
    changes = tiny.DECODER_ATTENTION_ONLY
    unet = tiny.new_unet("sd1", **changes)
    return StableDiffusion(find(str(tiny.save_model(folder, "sd1", unet))))


@pytest.fixture(scope="session")
def sees(model: StableDiffusion) -> Critic:
    """The embedded CLIP."""
    return critic("demo", model)


@pytest.fixture(scope="session")
def clip() -> CLIPModel:
    """The embedded CLIP as transformers has it, which can tell its attention's probabilities."""
    from transformers import CLIPModel

    from pnp_batch.models.networks import find as find_network

    folder = str(find_network("demo").path)
    loaded = CLIPModel.from_pretrained(folder, attn_implementation="eager")
    return loaded.float().eval().requires_grad_(False)
