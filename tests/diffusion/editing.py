"""What the tests of editing methods share: batches of prompts, and their rows for the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pnp_batch import parameters
from pnp_batch.diffusion.sampling import Guidance, Prompts
from pnp_batch.diffusion.unet import UNet
from pnp_batch.methods.base import Asked, Batch, Method
from pnp_batch.models import StableDiffusion
from pnp_batch.steps import Sampling
from tests import reference, reference_control, tiny
from tests.diffusion.scene import both_schedules, latents

_FOUND: dict[tuple[Any, ...], tuple[list[torch.Tensor], list[int]]] = {}


@dataclass(frozen=True)
class Scene:
    """Images with random trajectories, by their source prompts, and rows that edit them."""

    model: StableDiffusion
    steps: int
    sources: Sequence[str]
    owner: Sequence[int]
    rows: Sequence[Asked]
    scale: Sequence[float]
    given: dict[str, Any] = field(default_factory=dict)
    prediction: str = "epsilon"
    side: int = tiny.SIDE

    @property
    def unet(self) -> UNet:
        return UNet(self.model.unet)

    @property
    def noise(self) -> reference.Noise:
        return both_schedules(self.steps, self.prediction)[1]

    @property
    def latents(self) -> torch.Tensor:
        """x0 and the trajectories, (steps + 1, G, C, h, w)."""
        count = len(self.sources)
        flat = latents((self.steps + 1) * count, seed=1, side=self.side)
        return flat.unflatten(0, (self.steps + 1, count))

    def text(self, prompt: str) -> torch.Tensor:
        return self.model.text(prompt)[None].clone()

    def values(self, method: Method) -> dict[str, Any]:
        return parameters.resolved(method, self.given)

    def batch(self, method: Method, latents: torch.Tensor | None = None) -> Batch:
        schedule, _ = both_schedules(self.steps, self.prediction)
        x0, *trajectory = self.latents if latents is None else latents
        text = {
            name: torch.cat([self.text(prompt) for prompt in prompts])
            for name, prompts in (
                ("source", self.sources),
                ("target", [row.prompt for row in self.rows]),
                ("negative", [row.negative_prompt for row in self.rows]),
            )
        }
        return Batch(
            self.unet,
            schedule,
            Guidance(torch.stack(trajectory), text["source"], torch.tensor(self.owner), x0),
            Prompts(text["target"], text["negative"], torch.tensor(self.scale)),
            torch.empty(0),
            self.values(method),
            tuple(
                replace(row, source_prompt=self.sources[image])
                for row, image in zip(self.rows, self.owner, strict=True)
            ),
            self.model,
        )

    def evaluated(self, method: Method) -> tuple[torch.Tensor, int]:
        """The method's latents, and how many rows the UNet has evaluated for them."""
        batch = self.batch(method)
        result = method.translate(batch)
        assert result is not None
        return result, batch.unet.evaluations

    def cost(self, method: Method) -> int:
        """How many `cost` says."""
        cost = method.cost(Sampling(self.steps), self.values(method))
        assert cost.inversion
        return len(self.sources) * cost.guidance + len(self.rows) * (
            cost.translated + cost.translated_shallow
        )

    def only(self, *numbers: int) -> Scene:
        """Some of the rows, with all images."""
        return replace(
            self,
            owner=[self.owner[n] for n in numbers],
            rows=[self.rows[n] for n in numbers],
            scale=[self.scale[n] for n in numbers],
        )

    # What the reference takes.

    def image(self, number: int) -> reference_control.Image:
        x0, *trajectory = self.latents[:, [number]]
        by_time = dict(zip(self.noise.timesteps, trajectory, strict=True))
        return reference_control.Image(by_time, x0, self.text(self.sources[number]))

    def negatives(self, image: int, own: str = "") -> list[torch.Tensor]:
        """Of each step, for the image itself or for a row with a negative prompt of its own."""
        inversion = self.given.get("inversion", "ddim")
        if not own and inversion == "null-text":
            return self.null_text(image)[0]
        if not own and inversion == "negative-prompt":
            own = self.sources[image]
        return [self.text(own)] * self.steps

    def null_text(self, image: int) -> tuple[list[torch.Tensor], list[int]]:
        key = (id(self.model), self.steps, self.prediction, image, *self.sources)
        if key not in _FOUND:
            _FOUND[key] = reference_control.null_text(
                self.model.unet, self.image(image), self.text(""), self.noise
            )
        return _FOUND[key]

    def row(self, number: int) -> reference_control.Row:
        asked, image = self.rows[number], self.owner[number]
        negatives = self.negatives(image, asked.negative_prompt)
        return reference_control.Row(self.text(asked.prompt), negatives, self.scale[number])

    def by_hand(self, number: int, edit: reference_control.Edit) -> torch.Tensor:
        """What the reference makes of a row beside its image."""
        image = self.owner[number]
        return reference_control.beside(
            self.model.unet,
            self.image(image),
            self.negatives(image),
            self.row(number),
            edit,
            self.noise,
            direct=self.given.get("inversion") == "direct",
        )
