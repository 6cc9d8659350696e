"""Text2LIVE: a generator, trained on one picture, paints an edit layer over it.

Bar-Tal, Ofri-Amar, Fridman, Kasten, Dekel: Text2LIVE: Text-Driven Layered Image and Video Editing,
ECCV 2022, arXiv 2204.02491, and the published code's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Cost
from pnp_batch.methods.guided import Case, Guided
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

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

    def edited(self, case: Case) -> torch.Tensor:
        """Adds what the layer changes."""
        import torch

        from pnp_batch.diffusion.layer import over

        with torch.no_grad():
            image = case.image(case.x0)
        composite = over(image, *self.layer(case, image))
        changed: torch.Tensor = case.model.latents(composite) - case.model.latents(image)
        return case.x0 + changed

    def layer(self, case: Case, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colours (1, 3, H, W) and opacity (1, 1, H, W) of the trained generator's layer."""
        import torch

        from pnp_batch.diffusion.layer import Generator

        generator = Generator(image.shape[-1], case.dice).to(image.device)
        loss = _Losses(case, image)
        rate, steps = case.parameters["learning_rate"], case.parameters["optimiser_steps"]
        optimiser = torch.optim.Adam(generator.parameters(), lr=rate)
        for step in range(steps):
            optimiser.zero_grad()
            loss(generator(image), 1 - (step + 1) / steps).backward()
            optimiser.param_groups[0]["lr"] = rate * max(DECAY**step, LEAST)
            optimiser.step()
        with torch.no_grad():
            made: tuple[torch.Tensor, torch.Tensor] = generator(image)
        return made


class _Losses:
    """What the layer of a row is judged by."""

    def __init__(self, case: Case, image: torch.Tensor) -> None:
        import torch
        from torch.nn.functional import interpolate

        critic, asked = case.critic, case.asked
        self._case, self._image = case, image
        self._text = critic.text(asked.prompt)
        self._screened = critic.text(SCREEN.format(asked.prompt))
        self._source = critic.text(asked.source_prompt) if asked.source_prompt else None
        subject = asked.parameters.get("subject") or asked.source_prompt
        with torch.no_grad():
            self._keys = critic.keys(image)
        self._map = None
        if subject:
            seen = critic.relevance(image, subject)
            self._map = interpolate(seen, size=image.shape[-2:], mode="bilinear")

    def __call__(self, layer: tuple[torch.Tensor, torch.Tensor], left: float) -> torch.Tensor:
        """The loss of a layer, while a share `left` of the training is to come."""
        import torch

        from pnp_batch.diffusion.layer import green, over, sparsity
        from pnp_batch.diffusion.losses import direction, spherical, structure

        case, weights, critic = self._case, self._case.parameters, self._case.critic
        opacity = layer[1]
        composite, screened = over(self._image, *layer), over(green(self._image), *layer)
        # Side by side they get the same views.
        views = case.views(torch.cat([composite, screened, self._image], dim=1), SMALLEST_VIEW)
        composites, layers, images = views.chunk(3, dim=1)
        seen = critic.images(composites)
        told = spherical(seen, self._text)
        told = told + spherical(critic.images(layers), self._screened)
        if self._source is not None:
            with torch.no_grad():
                before = critic.images(images)
            told = told + direction(seen, before, self._text, self._source)
        loss: torch.Tensor = (
            weights["clip_weight"] * told.mean()
            + weights["structure_weight"] * structure(critic.keys(composite), self._keys)
            + weights["sparsity_weight"] * SPARSE * sparsity(opacity)
        )
        if self._map is not None:
            loss = loss + BOOTSTRAP * left * (opacity - self._map).square().mean()
        total: torch.Tensor = loss.sum()
        return total
