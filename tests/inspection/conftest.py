"""A tiny model of each layout and a few drawn pictures; tests leave the models as they were."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from pnp_batch.models import StableDiffusion, find
from pnp_batch.world import draw, random_spec
from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inspected")
    return {
        layout: tiny.save_model(
            root / layout, layout, tiny.new_unet(layout, **tiny.DECODER_ATTENTION_ONLY)
        )
        for layout in tiny.LAYOUTS
    }


@pytest.fixture(scope="session", params=tiny.LAYOUTS)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> StableDiffusion:
    return StableDiffusion(find(str(folders[request.param])))


@pytest.fixture(scope="session")
def first_model(folders: dict[str, Path]) -> StableDiffusion:
    """Of the SD 1.x layout, for what does not depend on the layout."""
    return StableDiffusion(find(str(folders["sd1"])))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [draw(random_spec(Random(n)), resolution=64).image for n in range(2)]
