"""Rows beside their sources: each step evaluates the guidance images and the rows in one batch.

In: trajectories, prompts, and a control of attention through which rows take from their images.
Out: edited latents. Prompt-to-Prompt and MasaCtrl are such controls.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from pnp_batch.diffusion.control import Site, controlled
from pnp_batch.diffusion.maps import CrossMaps, recording
from pnp_batch.diffusion.sampling import Guidance, Prompts, step
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet


@dataclass(frozen=True)
class Source:
    """The guidance images' own branch, on the way back from x_T.

    Attributes:
        guidance: trajectories (steps, G, C, h, w), source prompts, and x0 if it resets.
        negative: embeddings in the empty prompt's place, (G, tokens, D) or of each step (steps, G,
            tokens, D); None if only the source prompt is evaluated.
        scale: of its classifier-free guidance.
        resets: whether its latents are those of the trajectory at every step, whatever the UNet
            says (Ju et al., ICLR 2024, arXiv 2310.01506).
    """

    guidance: Guidance
    negative: torch.Tensor | None
    scale: float
    resets: bool

    @property
    def halves(self) -> int:
        """Evaluations of each image in a step."""
        return 1 if self.negative is None else 2

    @property
    def layout(self) -> Layout:
        """Of the batches that it begins."""
        return Layout(self.guidance.owner, self.guidance.text.shape[0], self.halves)

    def runs(self, index: int, window: range) -> bool:
        """Whether step `index` has to evaluate it, where its attention is taken in `window`."""
        return index in window or (not self.resets and index < window.stop and bool(window))

    def text(self, index: int) -> torch.Tensor:
        """Its embeddings in a step, (halves * G, tokens, D)."""
        if self.negative is None:
            return self.guidance.text
        return self._prompts(self.negative).at(index).both

    def below(
        self, output: torch.Tensor, x: torch.Tensor, schedule: Schedule, index: int
    ) -> torch.Tensor:
        """Its latents after a step, of what the UNet gave for its rows, if it was asked."""
        if self.resets:
            is_last = index + 1 == schedule.steps
            return self.guidance.x0 if is_last else self.guidance.trajectory[index + 1]
        if not len(output):
            return x
        if self.negative is not None:
            output = self._prompts(self.negative).combine(output)
        return step(output, x, schedule, index)

    def _prompts(self, negative: torch.Tensor) -> Prompts:
        text = self.guidance.text
        scale = torch.full((len(text),), self.scale, device=text.device)
        return Prompts(text, negative, scale)


@dataclass(frozen=True)
class Layout:
    """Whose the rows of a UNet batch are: the images' negative half if there are two halves, their
    conditional half, then the negative and the target half of the N rows.

    Attributes:
        owner: for each of the N rows the index of its image, int64 (N,).
        images: G.
        halves: of the images.
    """

    owner: torch.Tensor
    images: int
    halves: int

    @property
    def begin(self) -> int:
        """Where the N rows begin."""
        return self.halves * self.images

    @property
    def source(self) -> torch.Tensor:
        """For each of the N rows where the conditional half of its image is, int64 (N,)."""
        return self.owner + (self.halves - 1) * self.images

    def route(self, *, negative: bool) -> torch.Tensor:
        """Each row of the batch, but for the target half its images' rows instead; int64 (B,).

        For the negative half too if so asked: then those of the images' negative half, if any.
        """
        rows = len(self.owner)
        own = torch.arange(self.begin + rows, device=self.owner.device)
        head = torch.cat([own[: self.begin], self.owner]) if negative else own
        return torch.cat([head, self.source])


class Beside:
    """What rows take from their images in attention. Subclasses write `acts` and `attend`.

    Attributes:
        window: the steps in which they take something.
        reads: whether cross-attention is recorded in `maps`, which begin anew with each step.
        index: the step that is being evaluated.
    """

    window: range
    reads: bool = False
    maps: CrossMaps | None = None
    index: int = 0

    def begin(self, index: int) -> None:
        """Says which step is evaluated next."""
        self.index = index
        if self.maps is not None:
            self.maps.clear()

    def acts(self, site: Site) -> bool:
        """As `Control` says."""
        raise NotImplementedError

    def attend(
        self, site: Site, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """As `Control` says."""
        raise NotImplementedError

    def finished(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """What becomes of the rows' latents after a step, given their sources', (N, C, h, w) both.

        Not asked in steps in which the images are not evaluated.
        """
        return x


@torch.inference_mode()
def sample_beside(
    unet: UNet, source: Source, prompts: Prompts, schedule: Schedule, beside: Beside
) -> torch.Tensor:
    """Samples rows with classifier-free guidance from their images' x_T, beside these.

    An image is evaluated as long as something is taken from it, now or later.

    Returns:
        The latents x0 of the rows, (N, C, h, w).

    Raises:
        AttentionNotMet: an attention was not met exactly once.
    """
    owner = source.guidance.owner
    before = source.guidance.trajectory[0]
    x = before.index_select(0, owner)
    with ExitStack() as stack:
        run = stack.enter_context(controlled(unet.module, beside))
        if beside.reads:
            beside.maps = stack.enter_context(recording(unet.module, x.shape[-1]))
        for index, t in enumerate(schedule.timesteps):
            beside.begin(index)
            latents, text, begin = torch.cat([x, x]), prompts.at(index).both, 0
            if runs := source.runs(index, beside.window):
                begin = source.layout.begin
                latents = torch.cat([*[before] * source.halves, latents])
                text = torch.cat([source.text(index), text])
            output = run.evaluate(partial(unet, latents, t, text))
            before = source.below(output[:begin], before, schedule, index)
            x = step(prompts.combine(output[begin:]), x, schedule, index)
            if runs:
                x = beside.finished(x, before.index_select(0, owner))
    return x
