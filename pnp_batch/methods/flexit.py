"""FlexIT: latents moved towards a point of CLIP's space, between the text and the picture.

Couairon, Grechka, Verbeek, Schwenk, Cord: FlexIT: Towards Flexible Semantic Image Translation,
CVPR 2022, arXiv 2203.04705, and the configuration `final` of its published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Cost
from pnp_batch.methods.guided import Guided, Scene
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

SMALLEST_VIEW = 0.9  # share of the side; published: of 0.8 to 1 of the area


class FlexIT(Guided):
    """Steps of fixed length against the gradient of three losses: minus the product of the
    picture's embedding with text - 0.4 source text + 0.2 guidance image; the perceptual distance
    from the guidance image; the change of the latents, place by place.

    As in the published code with its VQGAN a step is `learning_rate` times the norm of the
    guidance image's latents; Adam is used there for other generators alone. Here the VAE of Stable
    Diffusion takes the VQGAN's place, one CLIP that of five, and CLIP's own hidden states that of
    LPIPS; texts are embedded as they are, not in templates. Without a source prompt the term of the
    source text is left out.
    """

    name = "flexit"
    summary = "FlexIT: latents moved towards text - source text + image, kept near the image"
    paper = "Couairon et al., CVPR 2022, arXiv 2203.04705"
    wants = ("source_prompt",)
    parameters = (
        *("clip", "optimiser_steps", "learning_rate", "cutouts"),
        *("clip_weight", "source_weight", "latent_weight"),
    )
    defaults: Mapping[str, Any] = {
        "optimiser_steps": 160,
        "learning_rate": 0.05,
        "cutouts": 1,
        "clip_weight": 1.0,
        "source_weight": 0.15,
        "latent_weight": 0.05,
    }

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """A decoding a step, and no UNet."""
        return Cost(decodes=parameters["optimiser_steps"])

    def led(self, scene: Scene) -> torch.Tensor:
        """Walks from the guidance images' latents."""
        import torch

        from pnp_batch.diffusion.losses import goal, gradient, perceptual

        weights, critic, z0 = scene.batch.parameters, scene.critic, scene.x0
        with torch.no_grad():
            images0 = scene.images(z0)
            hidden0 = critic.hidden(images0)
            target = goal(critic, images0, scene.prompts, scene.source_prompts)[:, None]

        def loss(z: torch.Tensor) -> torch.Tensor:
            images = scene.images(z)
            seen = scene.seen(scene.views(images, SMALLEST_VIEW))
            told = -(seen * target).sum(-1).mean(1)
            kept = perceptual(critic.hidden(images), hidden0)
            total: torch.Tensor = (
                weights["clip_weight"] * told
                + weights["source_weight"] * kept
                + weights["latent_weight"] * _lengths(z - z0) / _lengths(z0)
            )
            return total

        z, length = z0, weights["learning_rate"] * _norm(z0)
        for _ in range(weights["optimiser_steps"]):
            g = gradient(loss, z)
            z = z - length * g / _norm(g).clamp(min=1e-12)
        return z


def _norm(z: torch.Tensor) -> torch.Tensor:
    """Of each row, (B, 1, 1, 1)."""
    length: torch.Tensor = z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return length


def _lengths(z: torch.Tensor) -> torch.Tensor:
    """The lengths of each row's vectors at all places, summed; a little more, for a slope at 0."""
    return (z.square().sum(1) + 1e-12).sqrt().sum((1, 2))
