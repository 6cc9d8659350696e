"""Reconstruction: the guidance image inverted and sampled back, without a target prompt.

The end of every trade-off plot where nothing is edited, and the measure of an inversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods import way_back
from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch


class Reconstruct(Method):
    """DDIM sampling from x_T with the prompt of the inversion and no guidance.

    With `inversion` null-text (Mokady et al., arXiv 2211.09794) with guidance 7.5, as published,
    and in the empty prompt's place what it found.
    """

    name = "reconstruct"
    summary = "inversion and back, the prompt is not used"
    parameters = ("inversion",)
    inversions = ("ddim", way_back.NULL_TEXT)

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """One evaluation a step, with guidance two."""
        whole, shallow = sampling.evaluations(sampling.steps)
        halves = 2 if way_back.inversion_of(parameters) == way_back.NULL_TEXT else 1
        cost = Cost(inversion=True, translated=halves * whole, translated_shallow=halves * shallow)
        return way_back.with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Samples each row's guidance image back."""
        from pnp_batch.diffusion.sampling import reconstruct, sample

        owner = batch.guidance.owner
        start = batch.guidance.trajectory[0].index_select(0, owner)
        text = batch.guidance.text.index_select(0, owner)
        if way_back.inversion_of(batch.parameters) == way_back.NULL_TEXT:
            return sample(batch.unet, start, way_back.source_prompts(batch), batch.schedule)
        return reconstruct(batch.unet, start, text, batch.schedule)
