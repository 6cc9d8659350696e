"""How a job samples and inverts: how many steps, and which of them evaluate the whole UNet."""

from __future__ import annotations

from dataclasses import dataclass

# What `inversion` null-text optimises in each sampling step, as published.
NULL_TEXT_STEPS = 10
# The first share of the steps that edit-friendly leaves out: of the published 100, 36.
EDIT_FRIENDLY_SKIPPED = 0.36


@dataclass(frozen=True)
class Sampling:
    """How a job samples and inverts, the same for all its rows.

    Attributes:
        steps: of the sampling.
        inversion_steps: of the inversion, a multiple of `steps`; None for as many.
        deep_every: every so many-th step, of both, evaluates the whole UNet, those in between only
            its outermost layers (DeepCache: Ma et al., CVPR 2024, arXiv 2312.00858). 1 is exact.
    """

    steps: int = 50
    inversion_steps: int | None = None
    deep_every: int = 1

    @property
    def inversion(self) -> int:
        """Inversion steps, resolved."""
        return self.inversion_steps or self.steps

    @property
    def reuses(self) -> bool:
        """Whether there are steps that reuse the deep features of others."""
        return self.deep_every > 1

    def is_whole(self, index: int) -> bool:
        """Whether the step of this number, from 0 on, evaluates the whole UNet."""
        return index % self.deep_every == 0

    def evaluations(self, steps: int) -> tuple[int, int]:
        """Of so many steps the number of whole and of shallow ones."""
        whole = -(-steps // self.deep_every)
        return whole, steps - whole
