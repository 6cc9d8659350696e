"""Text2LIVE: a generator, trained on one picture, paints an edit layer over it.

Bar-Tal, Ofri-Amar, Fridman, Kasten, Dekel: Text2LIVE: Text-Driven Layered Image and Video Editing,
ECCV 2022, arXiv 2204.02491, and the published code's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Cost
from pnp_batch.methods.guided import Guided, Scene
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.critic import Critic

SMALLEST_VIEW = 0.6
SPARSE, BOOTSTRAP = 0.01, 10.0
DECAY, LEAST = 0.99, 1 / 250  # of the learning rate, each step and at the end
SCREEN = "{} over a green screen."


class Text2LIVE(Guided):
    """A generator of the row's own, its weights drawn from the row's seed, makes colours and
    opacity from the guidance image. Its losses, on 16 views: the spherical distance of the
    composite from the text, and of the layer over a green screen from the text over one; the change
    of the composite against that of the texts; the composite's structure, as keys of CLIP; the
    layer's opacity; and, fading, the difference between the opacity and CLIP's relevance map of the
    `subject`, or of the source prompt.

    Unlike the published one: Adam in place of MADGRAD; a smaller generator, which sees the picture
    itself and no crops of it; texts without templates but the green screen's; the same views of
    composite and guidance image. Without a source prompt there is no loss of changes, without a
    subject besides no map.

    The picture is made of pixels: it comes back as the guidance image's latents plus what the layer
    changes in the VAE's encoding, so that no layer is no change. The VAE loses some of its detail.
    """

    name = "text2live"
    summary = "Text2LIVE: a layer painted over the guidance image, as CLIP sees text and layer"
    paper = "Bar-Tal et al., ECCV 2022, arXiv 2204.02491"
    wants = ("source_prompt",)
    parameters = (
        *("clip", "subject", "optimiser_steps", "learning_rate", "cutouts"),
        *("clip_weight", "structure_weight", "sparsity_weight"),
    )
    defaults: Mapping[str, Any] = {
        "optimiser_steps": 1000,
        "learning_rate": 0.0025,
        "cutouts": 16,
        "clip_weight": 1.0,
        "structure_weight": 2.0,
        "sparsity_weight": 6.0,
    }

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Neither the UNet nor the decoder is evaluated while the generator is trained."""
        return Cost()

    def led(self, scene: Scene) -> torch.Tensor:
        """Adds what the layers change."""
        import torch

        from pnp_batch.diffusion.layer import over

        assert scene.batch.model is not None
        latents = scene.batch.model.latents
        with torch.no_grad():
            images = scene.images(scene.x0)
        composites = over(images, *self.layers(scene, images))
        changed: torch.Tensor = latents(composites) - latents(images)
        return scene.x0 + changed

    def layers(self, scene: Scene, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colours (B, 3, H, W) and opacity (B, 1, H, W) of the trained generators' layers."""
        import torch

        from pnp_batch.diffusion.layer import Generator, painted

        own = [Generator(images.shape[-1], dice).to(images.device) for dice in scene.dice]
        loss = _Losses(scene, images)
        rate = scene.batch.parameters["learning_rate"]
        steps = scene.batch.parameters["optimiser_steps"]
        weights = [weight for generator in own for weight in generator.parameters()]
        optimiser = torch.optim.Adam(weights, lr=rate)
        for step in range(steps):
            optimiser.zero_grad()
            loss(painted(own, images), 1 - (step + 1) / steps).sum().backward()
            optimiser.param_groups[0]["lr"] = rate * max(DECAY**step, LEAST)
            optimiser.step()
        with torch.no_grad():
            return painted(own, images)


class _Losses:
    """What the layers of rows are judged by."""

    def __init__(self, scene: Scene, images: torch.Tensor) -> None:
        import torch

        from pnp_batch.diffusion.losses import marked

        critic, sources = scene.critic, scene.source_prompts
        self._scene, self._images = scene, images
        self._texts = critic.texts(scene.prompts)[:, None]
        self._screened = critic.texts([SCREEN.format(prompt) for prompt in scene.prompts])[:, None]
        self._sources = critic.texts(sources)[:, None]
        self._has_source = marked(sources, images)
        subjects = [row.parameters.get("subject") or row.source_prompt for row in scene.rows]
        self._has_map = marked(subjects, images)
        with torch.no_grad():
            self._keys = critic.keys(images)
        self._maps = _maps(critic, images, subjects)

    def __call__(self, layers: tuple[torch.Tensor, torch.Tensor], left: float) -> torch.Tensor:
        """The loss of each row's layer, (B,), while a share `left` of the training is to come."""
        import torch

        from pnp_batch.diffusion.layer import green, over, sparsity
        from pnp_batch.diffusion.losses import direction, spherical, structure

        scene, weights = self._scene, self._scene.batch.parameters
        opacity = layers[1]
        composites, screened = over(self._images, *layers), over(green(self._images), *layers)
        # Side by side they get the same views.
        views = scene.views(torch.cat([composites, screened, self._images], dim=1), SMALLEST_VIEW)
        of_composites, of_layers, of_images = views.chunk(3, dim=1)
        seen = scene.seen(of_composites)
        told = spherical(seen, self._texts) + spherical(scene.seen(of_layers), self._screened)
        if self._has_source.any():
            with torch.no_grad():
                before = scene.seen(of_images)
            turned = direction(seen, before, self._texts, self._sources)
            told = told + self._has_source[:, None] * turned
        loss: torch.Tensor = (
            weights["clip_weight"] * told.mean(1)
            + weights["structure_weight"] * structure(scene.critic.keys(composites), self._keys)
            + weights["sparsity_weight"] * SPARSE * sparsity(opacity)
            + BOOTSTRAP * left * self._has_map * (opacity - self._maps).square().mean((1, 2, 3))
        )
        return loss


def _maps(critic: Critic, images: torch.Tensor, subjects: Sequence[str]) -> torch.Tensor:
    """What each row's subject is about, (B, 1, H, W)."""
    import torch
    from torch.nn.functional import interpolate

    found = [critic.relevance(images[[n]], subject) for n, subject in enumerate(subjects)]
    return interpolate(torch.cat(found), size=images.shape[-2:], mode="bilinear")
