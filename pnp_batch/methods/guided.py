"""What the methods have in common that optimise a row's picture against a CLIP, one row at a time.

In: a batch. Out: latents. Hundreds of optimiser steps make a difference in the last bit visible, so
that a row must not share a batch with others; a CPU gains little from that, and a GPU is filled by
the views of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pnp_batch.methods.base import Asked, Batch, Method

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.critic import Critic
    from pnp_batch.models import StableDiffusion


@dataclass(frozen=True)
class Case:
    """One row: its guidance image and what is asked of it.

    Attributes:
        x0: latents of the guidance image, (1, C, h, w).
        asked: of the row, in words.
        parameters: the method's own.
        model: decodes latents.
        critic: the CLIP.
        dice: what the row's views are drawn with.
    """

    x0: torch.Tensor
    asked: Asked
    parameters: Mapping[str, Any]
    model: StableDiffusion
    critic: Critic
    dice: torch.Generator

    def image(self, x: torch.Tensor) -> torch.Tensor:
        """Latents (1, C, h, w) as a picture (1, 3, H, W) in -1..1, with gradients."""
        from pnp_batch.diffusion.losses import shown

        return shown(self.model.pixels(x))

    def views(self, image: torch.Tensor, smallest: float = 0.5) -> torch.Tensor:
        """Random views of the row's pictures, `cutouts` of them, as large as CLIP wants them."""
        from pnp_batch.diffusion.critic import cut_outs

        count = self.parameters["cutouts"]
        return cut_outs(image, self.critic.side, [self.dice], count, smallest=smallest)


class Guided(Method):
    """A method that optimises each row for itself, from its guidance image's latents."""

    inverts = False

    def edited(self, case: Case) -> torch.Tensor:
        """Latents (1, C, h, w) of a row, after at least one step of the optimiser."""
        raise NotImplementedError(self.name)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Optimises row after row; without any step, the guidance images are what they were."""
        import torch

        owned = batch.guidance.x0.index_select(0, batch.guidance.owner).clone()
        if batch.parameters["optimiser_steps"] == 0:
            return owned
        made: list[torch.Tensor] = []
        for n, asked in enumerate(batch.rows):
            # A batch is padded with rows that are already in it.
            twins = (k for k in range(n) if batch.rows[k] == asked and owned[k].equal(owned[n]))
            twin = next(twins, None)
            made.append(self.edited(_case(batch, owned, n)) if twin is None else made[twin])
        return torch.cat(made)


def _case(batch: Batch, owned: torch.Tensor, n: int) -> Case:
    from pnp_batch.diffusion.critic import critic
    from pnp_batch.diffusion.losses import dice

    assert batch.model is not None
    asked, sees = batch.rows[n], critic(batch.parameters["clip"], batch.model)
    drawn = dice(asked.seed)
    return Case(owned[n : n + 1], asked, batch.parameters, batch.model, sees, drawn)
