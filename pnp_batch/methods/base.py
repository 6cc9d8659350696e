"""What every translation method is: a batch in, translated latents out.

A method is one file with one subclass of `Method`, held against its paper by its docstring. It
imports torch only when it translates, so that `plan` and `validate` know every method without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pnp_batch.errors import InvalidConfig
from pnp_batch.layers import ATTENTION, FEATURES
from pnp_batch.option import Option
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.sampling import Guidance, Prompts
    from pnp_batch.diffusion.schedule import Schedule
    from pnp_batch.diffusion.unet import UNet
    from pnp_batch.models import StableDiffusion


# Inversions that lead back to the image's own latents x0, not only to its trajectory.
TO_THE_IMAGE = ("null-text", "direct", "edit-friendly")


@dataclass(frozen=True)
class Asked:
    """What one row of a batch asks for, in words.

    Attributes:
        prompt, negative_prompt: of the row.
        source_prompt: that its guidance image was inverted or generated with; may be empty.
        seed: of the row.
        parameters: those of the method that each row has for itself, such as `subject`.
    """

    prompt: str
    negative_prompt: str = ""
    source_prompt: str = ""
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What a method translates: N rows over G guidance images, padded to a fixed shape.

    Attributes:
        unet: the denoiser.
        schedule: the sampling schedule.
        guidance: trajectories (steps, G, C, h, w) if the method inverts, latents x0
            (G, C, h, w) if it does not or needs them too; their prompts, and each row's image.
        prompts: target and negative embeddings and guidance scale of each row.
        noise: standard normal, of each row's own seed, float32 (N, C, h, w).
        parameters: the method's own parameters that all rows of the batch share.
        rows: what each of the N rows asks for, in words.
        model: encodes texts and pictures, decodes latents.
        keep: takes a row's index, a name and a small picture, uint8 (h, w), to be shown beside the
            row's result.
    """

    unet: UNet
    schedule: Schedule
    guidance: Guidance
    prompts: Prompts
    noise: torch.Tensor
    parameters: Mapping[str, Any]
    rows: tuple[Asked, ...] = ()
    model: StableDiffusion | None = None
    keep: Callable[[int, str, torch.Tensor], None] = lambda row, name, picture: None


@dataclass(frozen=True)
class Cost:
    """UNet evaluations of a method, counted in rows of a batch.

    Attributes:
        inversion: whether the guidance image is inverted first.
        feature_layers, attention_layers: the decoder layers that are injected, where any are.
        guidance_to_attention: evaluations of the guidance branch up to the last attention site.
        guidance_to_feature: evaluations of the guidance branch up to the last feature site.
        guidance_shallow: shallow evaluations of the guidance branch up to its attention site.
        guidance_shallow_to_feature: shallow ones of it up to its feature site.
        guidance_whole: whole evaluations of the guidance branch.
        guidance_gradients: of which so many come with a pass backwards.
        translated: whole evaluations for each output row.
        translated_shallow: shallow ones.
        mapped: evaluations for each output row up to the last cross-attention map.
        injected_features, injected_attention: how many whole ones skip what is injected.
        injected_shallow: how many shallow ones skip their attention.
        injected_shallow_features: how many their features.
        blended_attention: how many whole ones compute the injected self-attention beside another.
        gradients: how many of an output row's whole ones come with a pass backwards.
        decodes: decodings of an output row's latents with a pass backwards, through a CLIP.
        trained: whole evaluations for each pair of source and target text that rows share. How
            many pairs there are no plan knows, so that none counts them.
        trained_gradients: of which so many come with a pass backwards.
    """

    inversion: bool = False
    feature_layers: tuple[int, ...] = FEATURES
    attention_layers: tuple[int, ...] = ATTENTION
    guidance_to_attention: int = 0
    guidance_to_feature: int = 0
    guidance_shallow: int = 0
    guidance_shallow_to_feature: int = 0
    guidance_whole: int = 0
    guidance_gradients: int = 0
    translated: int = 0
    translated_shallow: int = 0
    mapped: int = 0
    injected_features: int = 0
    injected_attention: int = 0
    injected_shallow: int = 0
    injected_shallow_features: int = 0
    blended_attention: int = 0
    gradients: int = 0
    decodes: int = 0
    trained: int = 0
    trained_gradients: int = 0

    @property
    def guidance(self) -> int:
        """Evaluations of the guidance branch, however far they go."""
        whole = self.guidance_to_attention + self.guidance_to_feature + self.guidance_whole
        return whole + self.guidance_shallow + self.guidance_shallow_to_feature

    @property
    def row(self) -> int:
        """Evaluations for each output row, however far they go."""
        return self.translated + self.translated_shallow + self.mapped


class Method:
    """A translation method. Subclasses set the attributes and write `cost` and `translate`.

    Attributes:
        name: how the user calls it.
        summary: one line for `pnp-batch methods`.
        paper: where it was published, empty for the two that are not edits.
        parameters: names of those that shape its pictures: fields of `Parameters`, or of `options`.
        defaults: values of those that have none for all methods.
        options: a plug-in's own parameters, which users give by `--set`.
        inversions: the kinds of inversion it can start from, where it takes that parameter.
        inverts: whether it starts from the guidance image's trajectory; if not, it gets the
            image's own latents x0.
        needs_x0: whether it gets these also if it inverts.
        uses_model: False if the translation is the guidance image itself.
        wants: columns of a manifest without which it does less, such as `source_prompt`.
        exact_steps: whether every step has to evaluate the whole UNet (`deep_every` 1).
    """

    name: str
    summary: str
    paper: str = ""
    parameters: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}
    options: Mapping[str, Option] = {}
    inversions: tuple[str, ...] = ("ddim",)
    inverts: bool = True
    needs_x0: bool = False
    uses_model: bool = True
    exact_steps: bool = False
    wants: tuple[str, ...] = ()

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Refuses values that do not fit the method or each other.

        Raises:
            InvalidConfig: it names the parameter and what would do.
        """
        inversion = parameters.get("inversion")
        if inversion is not None and inversion not in self.inversions:
            raise InvalidConfig(
                f"inversion: {self.name} knows no {inversion!r}",
                f"use one of {', '.join(self.inversions)}",
            )

    def takes_x0(self, parameters: Mapping[str, Any]) -> bool:
        """Whether it gets the image's own latents x0."""
        to_the_image = parameters.get("inversion") in TO_THE_IMAGE
        return not self.inverts or self.needs_x0 or to_the_image

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Counts the UNet evaluations of one guidance image and of one row."""
        raise NotImplementedError(self.name)

    def translate(self, batch: Batch) -> torch.Tensor | None:
        """Latents x0 of the N rows, float32 (N, C, h, w); None: the guidance image itself."""
        raise NotImplementedError(self.name)
