"""Tiny models for the tests of the numerics, made once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pnp_batch.diffusion.unet import UNet
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model_dir(layout)`: the folder of a whole tiny model, `sd1` or `sd2`."""
    made: dict[str, Path] = {}

    def folder(layout: str) -> Path:
        if layout not in made:
            made[layout] = tiny.save_model(tmp_path_factory.mktemp("model") / layout, layout)
        return made[layout]

    return folder


@pytest.fixture(scope="session")
def unets() -> dict[str, UNet]:
    """One UNet of each layout, without attention in the encoder. Tests leave them as they were."""
    return {
        layout: UNet(tiny.new_unet(layout, **tiny.DECODER_ATTENTION_ONLY))
        for layout in tiny.LAYOUTS
    }


@pytest.fixture
def unet(unets: dict[str, UNet]) -> UNet:
    """The UNet of the SD 1.x layout, for what does not depend on the layout."""
    return unets["sd1"]
