"""What the methods have in common whose rows are led by a CLIP, with a pass backwards each step.

In: a batch. Out: latents. Rows are led side by side. Each has its own gradient and dice, so that
what it becomes depends on the shape of its batch, as with every method, and on no neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pnp_batch.methods.base import Asked, Batch, Method

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.critic import Critic

# Pixels of the pictures that are led at once, which limits what the pass backwards keeps: two of
# 512 x 512. Counted in float32, the activations of Stable Diffusion's decoder are 5 GB for each.
TOGETHER = 2**19


@dataclass(frozen=True)
class Scene:
    """Some rows of a batch, which are led side by side.

    Attributes:
        batch: of all rows.
        rows: what each of the B rows asks for.
        x0: latents of their guidance images, (B, C, h, w).
        noise: of their own seeds, likewise.
        critic: the CLIP.
        dice: what each row's views are drawn with.
    """

    batch: Batch
    rows: tuple[Asked, ...]
    x0: torch.Tensor
    noise: torch.Tensor
    critic: Critic
    dice: list[torch.Generator]

    @property
    def prompts(self) -> list[str]:
        """Of the rows."""
        return [row.prompt for row in self.rows]

    @property
    def source_prompts(self) -> list[str]:
        """Of the rows, empty where there is none."""
        return [row.source_prompt for row in self.rows]

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) as pictures (B, 3, H, W) in -1..1, with gradients."""
        from pnp_batch.diffusion.losses import shown

        assert self.batch.model is not None
        return shown(self.batch.model.pixels(x))

    def views(self, images: torch.Tensor, smallest: float = 0.5) -> torch.Tensor:
        """Random views of the rows' pictures, (B * `cutouts`, C, side, side) as CLIP wants them."""
        from pnp_batch.diffusion.critic import cut_outs

        count = self.batch.parameters["cutouts"]
        return cut_outs(images, self.critic.side, self.dice, count, smallest=smallest)

    def seen(self, views: torch.Tensor) -> torch.Tensor:
        """The embeddings of each row's views, (B, `cutouts`, D)."""
        embedded: torch.Tensor = self.critic.images(views).unflatten(0, (len(self.dice), -1))
        return embedded


class Guided(Method):
    """A method that leads each row away from its guidance image's latents."""

    inverts = False

    def still(self, batch: Batch) -> bool:
        """Whether there is nothing to do, so that the guidance images stay what they are."""
        return bool(batch.parameters["optimiser_steps"] == 0)

    def led(self, scene: Scene) -> torch.Tensor:
        """Latents (B, C, h, w) of rows, after at least one step."""
        raise NotImplementedError(self.name)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Leads the rows, as many at once as memory is meant for."""
        import torch

        if self.still(batch):
            return _owned(batch).clone()
        return torch.cat([self.led(scene) for scene in _scenes(batch)])


def _owned(batch: Batch) -> torch.Tensor:
    return batch.guidance.x0.index_select(0, batch.guidance.owner)


def _scenes(batch: Batch) -> Iterator[Scene]:
    """The rows in equal parts, so that the shape is the same for all of them."""
    from pnp_batch.diffusion.critic import critic
    from pnp_batch.diffusion.losses import dice

    assert batch.model is not None
    x0, rows = _owned(batch), batch.rows
    pixels = x0[0, 0].numel() * batch.model.files.scale_factor**2
    most = max(1, TOGETHER // pixels)
    size = max(n for n in range(1, len(rows) + 1) if len(rows) % n == 0 and n <= most)
    sees = critic(batch.parameters["clip"], batch.model)
    for first in range(0, len(rows), size):
        own = slice(first, first + size)
        drawn = [dice(row.seed) for row in rows[own]]
        yield Scene(batch, rows[own], x0[own].clone(), batch.noise[own], sees, drawn)
