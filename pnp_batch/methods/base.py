"""What every translation method is: a batch in, translated latents out.

A method is one file with one subclass of `Method`, held against its paper by its docstring. It
imports torch only when it translates, so that `plan` and `validate` know every method without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.sampling import Guidance, Prompts
    from pnp_batch.diffusion.schedule import Schedule
    from pnp_batch.diffusion.unet import UNet


@dataclass(frozen=True)
class Batch:
    """What a method translates: N rows over G guidance images, padded to a fixed shape.

    Attributes:
        unet: the denoiser.
        schedule: the sampling schedule.
        guidance: trajectories (steps, G, C, h, w) if the method inverts, else latents x0
            (G, C, h, w); their prompts, and each row's image.
        prompts: target and negative embeddings and guidance scale of each row.
        noise: standard normal, of each row's own seed, float32 (N, C, h, w).
        parameters: the method's own parameters, the same for all rows of a batch.
    """

    unet: UNet
    schedule: Schedule
    guidance: Guidance
    prompts: Prompts
    noise: torch.Tensor
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """UNet evaluations of a method, counted in rows of a batch.

    Attributes:
        inversion: whether the guidance image is inverted first.
        guidance_to_attention: evaluations of the guidance branch up to the last attention site.
        guidance_to_feature: evaluations of the guidance branch up to the feature site.
        guidance_shallow: shallow evaluations of the guidance branch up to its attention site.
        translated: whole evaluations for each output row.
        translated_shallow: shallow ones.
        injected_features, injected_attention: how many whole ones skip what is injected.
        injected_shallow: how many shallow ones do.
    """

    inversion: bool = False
    guidance_to_attention: int = 0
    guidance_to_feature: int = 0
    guidance_shallow: int = 0
    translated: int = 0
    translated_shallow: int = 0
    injected_features: int = 0
    injected_attention: int = 0
    injected_shallow: int = 0

    @property
    def guidance(self) -> int:
        """Evaluations of the guidance branch, however far they go."""
        return self.guidance_to_attention + self.guidance_to_feature + self.guidance_shallow


class Method:
    """A translation method. Subclasses set the attributes and write `cost` and `translate`.

    Attributes:
        name: how the user calls it.
        summary: one line for `pnp-batch methods`.
        paper: where it was published, empty for the two that are not edits.
        parameters: those of its options that shape its pictures.
        inverts: whether it starts from the guidance image's trajectory; if not, it gets the
            image's own latents x0.
        uses_model: False if the translation is the guidance image itself.
    """

    name: str
    summary: str
    paper: str = ""
    parameters: tuple[str, ...] = ()
    inverts: bool = True
    uses_model: bool = True

    def cost(self, sampling: Sampling, parameters: Mapping[str, float]) -> Cost:
        """Counts the UNet evaluations of one guidance image and of one row."""
        raise NotImplementedError(self.name)

    def translate(self, batch: Batch) -> torch.Tensor | None:
        """Latents x0 of the N rows, float32 (N, C, h, w); None: the guidance image itself."""
        raise NotImplementedError(self.name)
