"""VQGAN-CLIP: the decoder's latents optimised until CLIP sees the text in the picture.

Crowson, Biderman, Kornis, Stander, Hallahan, Castricato, Raff: VQGAN-CLIP: Open Domain Image
Generation and Editing with Natural Language Guidance, ECCV 2022, arXiv 2204.08583.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Cost
from pnp_batch.methods.guided import Guided, Scene
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch


class VQGANCLIP(Guided):
    """Adam on the latents of the guidance image: the spherical distance between the embeddings of
    augmented cut-outs and of the text, and half the squared distance from where it began.

    Unlike the published one it has the VAE of Stable Diffusion in place of a VQGAN, so that latents
    are neither quantised nor clamped to a codebook's range. Cut-outs are squares that are turned
    and mirrored; perspective, colour jitter, erasing and noise are left out.
    """

    name = "vqgan-clip"
    summary = "VQGAN-CLIP: latents optimised towards the text, as CLIP sees cut-outs"
    paper = "Crowson et al., ECCV 2022, arXiv 2204.08583"
    parameters = (
        *("clip", "optimiser_steps", "learning_rate", "cutouts"),
        *("clip_weight", "source_weight"),
    )
    defaults: Mapping[str, Any] = {
        "optimiser_steps": 500,
        "learning_rate": 0.1,
        "cutouts": 32,
        "clip_weight": 1.0,
        "source_weight": 0.0,
    }

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """A decoding a step, and no UNet."""
        return Cost(decodes=parameters["optimiser_steps"])

    def led(self, scene: Scene) -> torch.Tensor:
        """Descends from the guidance images' latents."""
        from pnp_batch.diffusion.losses import descend, spherical

        weights, x0 = scene.batch.parameters, scene.x0
        target = scene.critic.texts(scene.prompts)[:, None]

        def loss(z: torch.Tensor) -> torch.Tensor:
            told = spherical(scene.seen(scene.views(scene.images(z))), target).mean(1)
            kept = (z - x0).square().mean((1, 2, 3)) / 2
            total: torch.Tensor = weights["clip_weight"] * told + weights["source_weight"] * kept
            return total

        return descend(loss, x0, weights["optimiser_steps"], weights["learning_rate"])
