"""The parameter `inversion` of those methods that take it: what it costs, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Batch, Cost
from pnp_batch.steps import NULL_TEXT_STEPS, Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.sampling import Prompts
    from pnp_batch.diffusion.source_branch import Source

NULL_TEXT = "null-text"
PLAIN = "ddim"


def inversion_of(parameters: Mapping[str, Any]) -> str:
    """Its name; outputs of earlier versions name none."""
    return str(parameters.get("inversion", PLAIN))


def with_way_back(cost: Cost, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
    """A cost, and that of what is done for each image before its rows are sampled.

    Null-text stops early where it can: this is the most that it evaluates.
    """
    if inversion_of(parameters) != NULL_TEXT:
        return cost
    backwards = sampling.steps * NULL_TEXT_STEPS
    return replace(
        cost,
        guidance_whole=cost.guidance_whole + backwards + 2 * sampling.steps,
        guidance_gradients=cost.guidance_gradients + backwards,
    )


def unconditional(batch: Batch) -> torch.Tensor:
    """What stands in the empty prompt's place for each image, (G, ...) or of each step."""
    from pnp_batch.diffusion import inversions

    assert batch.model is not None
    return inversions.unconditional(
        inversion_of(batch.parameters),
        batch.unet,
        batch.guidance,
        batch.model.text(""),
        batch.schedule,
    )


def prompts(batch: Batch, images: torch.Tensor | None = None) -> Prompts:
    """The prompts of a batch's rows, those without a negative prompt with their image's instead.

    Args:
        batch: the batch.
        images: what `unconditional` made, if it has been asked.
    """
    import torch

    if inversion_of(batch.parameters) not in ("negative-prompt", NULL_TEXT):
        return batch.prompts
    images = unconditional(batch) if images is None else images
    own = torch.tensor([bool(row.negative_prompt) for row in batch.rows], device=images.device)
    of_image = images.index_select(-3, batch.guidance.owner)
    negative = torch.where(own[:, None, None], batch.prompts.negative, of_image)
    return replace(batch.prompts, negative=negative)


def source(batch: Batch, negative: torch.Tensor | None) -> Source:
    """The branch of a batch's images; without guidance if there is no `negative`.

    Args:
        batch: the batch.
        negative: what `unconditional` made.
    """
    from pnp_batch.diffusion.inversions import SOURCE_SCALE
    from pnp_batch.diffusion.source_branch import Source

    resets = inversion_of(batch.parameters) == "direct"
    return Source(batch.guidance, negative, SOURCE_SCALE, resets=resets)


def source_prompts(batch: Batch) -> Prompts:
    """Those with which each row's image is sampled back: guided, by its own source prompt."""
    from pnp_batch.diffusion.inversions import SOURCE_SCALE
    from pnp_batch.diffusion.sampling import Prompts

    owner, scale = batch.guidance.owner, batch.prompts.scale
    text = batch.guidance.text.index_select(0, owner)
    negative = unconditional(batch).index_select(-3, owner)
    return Prompts(text, negative, scale.new_full(scale.shape, SOURCE_SCALE))
