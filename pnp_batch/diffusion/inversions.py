"""Ways back from an inverted image: what keeps sampling with guidance near its trajectory.

Each is a value of the parameter `inversion`. Here is what stands in the empty prompt's place; the
source branch of `source_branch` does what `direct` does, and `edit_friendly` is a sampling of its
own.
"""

from __future__ import annotations

import torch

from pnp_batch.diffusion.null_text import null_text
from pnp_batch.diffusion.sampling import Guidance
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet

# Of the classifier-free guidance of all that images do with their source prompts, as published
# with null-text inversion: rows of one image may have several scales, the image has this one.
SOURCE_SCALE = 7.5
# With which edit-friendly noise is extracted, in its authors' code.
EXTRACTION_SCALE = 3.5


def unconditional(
    inversion: str, unet: UNet, guidance: Guidance, empty: torch.Tensor, schedule: Schedule
) -> torch.Tensor:
    """What stands where the empty prompt would in the classifier-free guidance of each image.

    The source prompt of negative-prompt inversion (Miyake et al., arXiv 2305.16807, section 4);
    what null-text inversion finds; else the empty prompt itself.

    Args:
        inversion: its name.
        unet: the denoiser.
        guidance: trajectories and prompts, and x0 for null-text.
        empty: the embedding of the empty prompt, (tokens, D).
        schedule: the sampling schedule.

    Returns:
        (G, tokens, D), or one for each step, (steps, G, tokens, D).
    """
    if inversion == "null-text":
        return null_text(unet, guidance, empty, schedule, SOURCE_SCALE)
    return guidance.text if inversion == "negative-prompt" else empty.expand_as(guidance.text)
