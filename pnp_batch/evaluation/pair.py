"""What is scored: one translation beside its guidance image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class NotScored:
    """Why a pair has no score."""

    reason: str


Found = float | NotScored
NO_MASK = NotScored("the row has no mask")


@dataclass(frozen=True)
class Pair:
    """A translation and what it was made from.

    Attributes:
        output: RGB and square, as it is stored.
        source: the guidance image as it went to work, of the same size; or why there is none.
        prompt: the target text.
        source_prompt: what the guidance image shows, empty if nobody said.
        mask: bool (height, width), True where the picture was to change; or why there is none.
        world: of a drawn picture what it shows, as `world.case` has it.
    """

    output: Image.Image
    source: Image.Image | NotScored
    prompt: str
    source_prompt: str = ""
    mask: NDArray[np.bool_] | NotScored = NO_MASK
    world: str | None = None


class Metric(Protocol):
    """A family of scores that are computed together."""

    @property
    def name(self) -> str:
        """As `--metrics` calls it."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of its columns."""

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, each on its own: what stands beside it changes nothing."""


def pixels(image: Image.Image) -> torch.Tensor:
    """An RGB image as float32 (1, 3, height, width) in 0..1."""
    array = np.asarray(image, np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None]
