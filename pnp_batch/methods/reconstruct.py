"""Reconstruction: the guidance image inverted and sampled back, without a target prompt.

The end of every trade-off plot where nothing is edited, and the measure of an inversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch


class Reconstruct(Method):
    """DDIM sampling from x_T with the prompt of the inversion and no guidance."""

    name = "reconstruct"
    summary = "inversion and back, the prompt is not used"

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """One evaluation a step."""
        whole, shallow = sampling.evaluations(sampling.steps)
        return Cost(inversion=True, translated=whole, translated_shallow=shallow)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Samples each row's guidance image back."""
        from pnp_batch.diffusion.sampling import reconstruct

        owner = batch.guidance.owner
        start = batch.guidance.trajectory[0].index_select(0, owner)
        text = batch.guidance.text.index_select(0, owner)
        return reconstruct(batch.unet, start, text, batch.schedule)
