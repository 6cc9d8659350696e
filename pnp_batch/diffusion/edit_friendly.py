"""Edit-friendly noise: image latents and prompts in, edited latents out.

Huberman-Spiegelglas, Kulikov, Michaeli: An Edit Friendly DDPM Noise Space, CVPR 2024, arXiv
2304.06140, algorithm 1 and section 4.
"""

from __future__ import annotations

import torch

from pnp_batch.diffusion.sampling import Prompts
from pnp_batch.diffusion.schedule import Schedule, ancestral, move, predicted
from pnp_batch.diffusion.unet import UNet
from pnp_batch.steps import EDIT_FRIENDLY_SKIPPED


@torch.inference_mode()
def edit_friendly(
    unet: UNet,
    x0: torch.Tensor,
    noise: torch.Tensor,
    source: Prompts,
    prompts: Prompts,
    schedule: Schedule,
) -> torch.Tensor:
    """Samples with the target prompts and the noise that leads from x_T to x0 with the source's.

    Each level of the source has noise of its own, x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) noise_t,
    and z_t is what its DDPM step lacks from there to the level below: sigma_t z_t =
    x_(t-1) - mu_t(x_t). The rows take the same steps with these z_t, from the level at which
    the first share of the steps is left out.

    Args:
        unet: the denoiser.
        x0: latents of each row's image, float32 (N, C, h, w).
        noise: standard normal, of each level and row, (steps, N, C, h, w).
        source, prompts: of the source and of the rows, N each.
        schedule: the sampling schedule.

    Returns:
        The latents x0 of the rows, (N, C, h, w).
    """
    first = int(schedule.steps * EDIT_FRIENDLY_SKIPPED)
    text = torch.cat([source.both, prompts.both])
    before = x = move(x0, noise[first], schedule.level(schedule.timesteps[first]))
    for index in range(first, schedule.steps):
        output = unet(torch.cat([before, before, x, x]), schedule.timesteps[index], text)
        of_source, of_rows = output.chunk(2)
        mean, sigma = _ddpm(source.combine(of_source), before, schedule, index)
        below = schedule.below(index)
        after = x0 if below is None else move(x0, noise[index + 1], schedule.level(below))
        x, _ = _ddpm(prompts.combine(of_rows), x, schedule, index)
        if sigma > 0:
            x = x + (after - mean)
        before = after
    return x


def _ddpm(
    output: torch.Tensor, x: torch.Tensor, schedule: Schedule, index: int
) -> tuple[torch.Tensor, float]:
    """Mean and sigma of a DDPM step from timestep `index` of the sampling."""
    now, then = schedule.level(schedule.timesteps[index]), schedule.level(schedule.below(index))
    x0, eps = predicted(output, x, now, schedule.prediction)
    mean, variance = ancestral(x0, eps, now, then)
    return mean, variance**0.5
