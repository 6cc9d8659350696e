"""Copy: the guidance image itself, the end of every trade-off plot where all structure is kept.

It needs no UNet, which makes it the way to measure the pipeline alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling


class Copy(Method):
    """The prepared guidance image, untouched."""

    name = "copy"
    summary = "the guidance image itself, the prompt is not used"
    inverts = False
    uses_model = False

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Nothing is evaluated."""
        return Cost()

    def translate(self, batch: Batch) -> None:
        """There are no latents: the picture is the guidance image."""
