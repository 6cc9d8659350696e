"""FlexIT: latents moved towards a point of CLIP's space, between the text and the picture.

Couairon, Grechka, Verbeek, Schwenk, Cord: FlexIT: Towards Flexible Semantic Image Translation,
CVPR 2022, arXiv 2203.04705, and the configuration `final` of its published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Cost
from pnp_batch.methods.guided import Case, Guided
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

    def edited(self, case: Case) -> torch.Tensor:
        """Walks from the guidance image's latents."""
        import torch

        from pnp_batch.diffusion.losses import goal, gradient, perceptual

        weights, critic, z0 = case.parameters, case.critic, case.x0
        with torch.no_grad():
            image0 = case.image(z0)
            hidden0 = critic.hidden(image0)
            target = goal(critic, image0, [case.asked.prompt], [case.asked.source_prompt])

        def loss(z: torch.Tensor) -> torch.Tensor:
            image = case.image(z)
            told = -(critic.images(case.views(image, SMALLEST_VIEW)) @ target.T).mean()
            kept = perceptual(critic.hidden(image), hidden0)
            total: torch.Tensor = (
                weights["clip_weight"] * told
                + weights["source_weight"] * kept
                + weights["latent_weight"] * _lengths(z - z0) / _lengths(z0)
            )
            return total

        z, length = z0, weights["learning_rate"] * z0.norm()
        for _ in range(weights["optimiser_steps"]):
            g = gradient(loss, z)
            z = z - length * g / g.norm().clamp(min=1e-12)
        return z


def _lengths(z: torch.Tensor) -> torch.Tensor:
    """The lengths of the vectors at all places, summed; a little more, to have a slope at 0."""
    return (z.square().sum(1) + 1e-12).sqrt().sum()
