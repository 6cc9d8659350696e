"""What the tests of the numerics share: inputs, calls of the code under test, and a distance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from pnp_batch.diffusion import sampling
from pnp_batch.diffusion.schedule import Schedule, make_schedule
from pnp_batch.diffusion.sites import Sites
from pnp_batch.diffusion.unet import UNet
from pnp_batch.steps import Sampling
from tests import reference, tiny

# Both sides compute in float32 (the UNet's own dtype), in another order: the code under test stacks
# rows and uses fused attention, the reference has one row and writes the softmax out; and it works
# alpha_bar out in float64, diffusers in float32. One step differs by some 1e-6; guidance scales
# and ten steps bring that to 2e-5 at most, while leaving out any single site changes a result by
# more than 1e-2 (test_tiny.py).
TOLERANCE = 1e-4


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in units of the largest value of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def latents(count: int, seed: int = 0, side: int = tiny.SIDE) -> torch.Tensor:
    """Latents (count, 4, side, side) with the statistics of an image's."""
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))


def texts(count: int, seed: int = 0, tokens: int = 6) -> torch.Tensor:
    """Text embeddings (count, tokens, D), all different."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, tokens, tiny.WIDTH, generator=generator)


EMPTY = texts(1, seed=99)  # what stands for the embedding of the empty prompt


def config(prediction: str = "epsilon", **changes: object) -> dict:
    """The scheduler configuration published with Stable Diffusion, as a DDIM one."""
    return {**tiny.PUBLISHED["sd2"], "prediction_type": prediction, **changes}


@dataclass(frozen=True)
class Rows:
    """N rows over G trajectories (steps, G, C, h, w): a whole call of `translate`."""

    trajectory: torch.Tensor
    source: torch.Tensor
    owner: list[int]
    target: torch.Tensor
    negative: torch.Tensor
    scale: list[float]

    def translated(
        self,
        unet: UNet,
        schedule: Schedule,
        feature_steps: int,
        attention_steps: int,
        sites: Sites | None = None,
    ) -> torch.Tensor:
        """What the code under test makes of all rows at once."""
        return sampling.translate(
            unet,
            sampling.Guidance(self.trajectory, self.source, torch.tensor(self.owner)),
            sampling.Prompts(self.target, self.negative, torch.tensor(self.scale)),
            schedule,
            sampling.Injecting(feature_steps, attention_steps, sites),
        )

    def by_hand(
        self,
        unet: UNet,
        noise: reference.Noise,
        f: float,
        attn: float,
        layers: tuple[Collection[int], Collection[int]] = ((4,), range(4, 12)),
        every: int = 1,
    ) -> torch.Tensor:
        """What the reference makes of them, one by one. `f` and `attn` are pnp_f_t, pnp_attn_t."""
        features = {}
        results = []
        for row, image in enumerate(self.owner):
            trajectory = dict(zip(noise.timesteps, self.trajectory[:, [image]], strict=True))
            if image not in features:
                features[image] = reference.guidance_pass(
                    unet.module, trajectory, self.source[[image]], noise, every
                )
            edit = reference.Edit(
                self.target[[row]], self.negative[[row]], self.scale[row], f, attn, *layers
            )
            start = trajectory[noise.timesteps[0]]
            results.append(
                reference.translated_pass(unet.module, start, features[image], edit, noise, every)
            )
        return torch.cat(results)


def rows(
    steps: int, owner: list[int], scale: list[float] | None = None, side: int = tiny.SIDE
) -> Rows:
    """Rows with random trajectories: what they are makes no difference to the translation."""
    count = max(owner) + 1
    flat = latents(steps * count, seed=1, side=side)
    return Rows(
        trajectory=flat.unflatten(0, (steps, count)),
        source=EMPTY.expand(count, -1, -1),
        owner=owner,
        target=texts(len(owner), seed=2),
        negative=texts(len(owner), seed=3),
        scale=scale or [7.5] * len(owner),
    )


def both_schedules(
    steps: int,
    prediction: str = "epsilon",
    *,
    inversion_steps: int | None = None,
    deep_every: int = 1,
    **changes: object,
) -> tuple[Schedule, reference.Noise]:
    """The same schedule from the code under test and from the reference."""
    settings = config(prediction, **changes)
    return (
        make_schedule(settings, Sampling(steps, inversion_steps, deep_every)),
        reference.noise_schedule(settings, steps),
    )
