"""DDIM: the guidance image inverted, then sampled with the target prompt; nothing is injected.

What is left of every method here without its control, and the place to compare inversions: Song,
Meng, Ermon, ICLR 2021, arXiv 2010.02502, section 4.3, sampled with classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.methods.way_back import inversion_of, prompts, with_way_back
from pnp_batch.steps import EDIT_FRIENDLY_SKIPPED, Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.sampling import Prompts

EDIT_FRIENDLY = "edit-friendly"


class DDIM(Method):
    """Sampling from each image's x_T, as pnp without injection.

    `inversion` is one of

    - `ddim`: nothing else.
    - `negative-prompt` (Miyake et al., arXiv 2305.16807) and `null-text` (Mokady et al., arXiv
      2211.09794): for rows that have no negative prompt of their own. Null-text optimises for each
      image, at guidance 7.5 as published, whatever the rows' guidance is.
    - `edit-friendly` (Huberman-Spiegelglas et al., arXiv 2304.06140): DDPM steps with noise
      extracted from the image; the first 36 % of the steps are left out and the source's guidance
      is 3.5, as in the authors' code, whose target guidance of 15 is `guidance_scale` here. The
      noise comes from the row's seed. The last step's z is extracted like the others, as in the
      paper's algorithm; that code sets it to zero. The image's DDIM inversion is made, not used.
    """

    name = "ddim"
    summary = "inversion, then sampling with the prompt; compares kinds of inversion"
    paper = "Song et al., ICLR 2021, arXiv 2010.02502"
    parameters = ("guidance_scale", "negative_prompt", "inversion")
    inversions = ("ddim", "negative-prompt", "null-text", EDIT_FRIENDLY)

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Two evaluations a step; with edit-friendly noise two of the source besides."""
        if inversion_of(parameters) == EDIT_FRIENDLY:
            left = sampling.steps - int(sampling.steps * EDIT_FRIENDLY_SKIPPED)
            return Cost(inversion=True, translated=4 * left)
        whole, shallow = sampling.evaluations(sampling.steps)
        cost = Cost(inversion=True, translated=2 * whole, translated_shallow=2 * shallow)
        return with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Samples each row from x_T of its image, or from x0 and noise of its own seed."""
        from pnp_batch.diffusion.edit_friendly import edit_friendly
        from pnp_batch.diffusion.sampling import sample

        owner = batch.guidance.owner
        if inversion_of(batch.parameters) == EDIT_FRIENDLY:
            return edit_friendly(
                batch.unet,
                batch.guidance.x0.index_select(0, owner),
                _noise(batch),
                _source(batch),
                batch.prompts,
                batch.schedule,
            )
        start = batch.guidance.trajectory[0].index_select(0, owner)
        return sample(batch.unet, start, prompts(batch), batch.schedule)


def _noise(batch: Batch) -> torch.Tensor:
    """Noise of each level and row, (steps, N, C, h, w); a seed's first draw may have made its
    image."""
    import torch

    from pnp_batch.diffusion.sampling import noise

    shape = (batch.schedule.steps, *batch.guidance.x0.shape[1:])
    drawn = [noise(row.seed, shape, before=1) for row in batch.rows]
    return torch.stack(drawn, dim=1).to(batch.guidance.x0.device)


def _source(batch: Batch) -> Prompts:
    """The source's side of each row."""
    import torch

    from pnp_batch.diffusion.inversions import EXTRACTION_SCALE
    from pnp_batch.diffusion.sampling import Prompts

    assert batch.model is not None
    text = batch.guidance.text.index_select(0, batch.guidance.owner)
    scale = torch.full_like(batch.prompts.scale, EXTRACTION_SCALE)
    return Prompts(text, batch.model.text("").expand_as(text), scale)
