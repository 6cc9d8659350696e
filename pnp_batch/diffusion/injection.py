"""Injection: carries features and self-attention from guidance rows to translated rows.

`injected(sites)` installs forward hooks for the length of a `with` block. Inside it a UNet
evaluation is run either through `Injection.guidance`, which keeps what the scheduled sites
compute and stops right after the last of them, or through `Injection.translated`, in which those
sites hand out what was kept instead of computing it (Tumanyan et al., CVPR 2023, eq. 4 and 6).
Where a self-attention allows it, its probabilities are computed once for all rows of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pnp_batch.diffusion.attention import SharedAttention, is_plain
from pnp_batch.diffusion.sites import Sites
from pnp_batch.errors import InvalidModel

Kind = TypeVar("Kind", bound="Injection")


class InjectionNotFired(InvalidModel):
    """A scheduled site was not met exactly once: the picture would silently be something else."""


class _Complete(Exception):
    """Ends a guidance evaluation once every scheduled site has been kept: no error."""


def injected(sites: Sites, owner: torch.Tensor) -> AbstractContextManager[Injection]:
    """Installs hooks and processors at `sites` and always removes them, also after an exception.

    Args:
        sites: of the UNet.
        owner: for each row of the translated evaluations the index of its guidance row, int64 (R,).
    """
    return installed(Injection(sites, owner))


@contextmanager
def installed(injection: Kind) -> Iterator[Kind]:
    """The same for an injection of any kind."""
    with ExitStack() as stack:
        for remove in injection.install():
            stack.callback(remove)
        yield injection


class Injection:
    """The state shared by the hooks of one UNet: what is scheduled, kept, and handed out."""

    def __init__(self, sites: Sites, owner: torch.Tensor) -> None:
        self._sites = sites
        self._owner = owner
        self._groups = _grouped(owner)
        self._handing_out = False
        self._features = frozenset(block.conv2 for block in sites.features)
        self._attention = frozenset(part for a in sites.attention for part in (a.to_q, a.to_k))
        self._outermost = frozenset(part for site in sites.outermost for part in site.modules())
        self._scheduled: frozenset[nn.Module] = frozenset()
        self._kept: dict[nn.Module, torch.Tensor] = {}
        self._fired: list[nn.Module] = []

    def install(self) -> Iterator[Callable[[], Any]]:
        """Installs hooks and processors, yielding what removes each."""
        for block in self._sites.features:
            # The residual branch of an injected block is not computed at all: its inputs are
            # emptied, and its last convolution hands out the guidance rows' output.
            yield block.norm1.register_forward_pre_hook(self._empty(block.conv2)).remove
            yield block.time_emb_proj.register_forward_pre_hook(self._empty(block.conv2)).remove
            yield block.conv2.register_forward_hook(self._hand_over).remove
            yield from _uncompiled(block)
        for projection in self._attention:
            yield projection.register_forward_pre_hook(self._empty(projection)).remove
            yield projection.register_forward_hook(self._hand_over).remove
        for attention in self._sites.attention:
            if self._groups is not None and is_plain(attention):
                own = attention.processor
                attention.set_processor(SharedAttention(own, self._shared, self._groups.shape[1]))
                yield partial(attention.set_processor, own)

    def guidance(
        self, evaluate: Callable[[], Any], *, features: bool, attention: bool, whole: bool = True
    ) -> None:
        """Runs a guidance evaluation up to its last scheduled site, keeping what they compute.

        Args:
            evaluate: evaluates the UNet for the guidance rows; not called if nothing is scheduled.
            features, attention: what is injected.
            whole: of all layers. If not, the outermost ones are evaluated, and injected, alone.

        Raises:
            InjectionNotFired: a scheduled site was not met.
        """
        kinds = ((self._features, features), (self._attention, attention))
        self._scheduled = frozenset(site for kind, wanted in kinds if wanted for site in kind)
        if not whole:
            self._scheduled &= self._outermost
        self._kept, self._fired = {}, []
        if not self._scheduled:
            return
        try:
            evaluate()
        except _Complete:
            return
        self._refuse("was not met in the guidance branch")

    def translated(self, evaluate: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs an evaluation whose rows are injected from their guidance rows.

        Raises:
            InjectionNotFired: a scheduled site was not met exactly once.
        """
        self._handing_out, self._fired = True, []
        try:
            output = evaluate()
        finally:
            self._handing_out = False
        if len(self._fired) != len(self._scheduled) or set(self._fired) != self._scheduled:
            self._refuse("was not met exactly once in the translated branches")
        return output

    def _shared(
        self, attention: Attention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """The guidance rows' queries and keys at a site, and which rows follow each of them."""
        projections = [attention.to_q, attention.to_k]
        if not self._handing_out or self._groups is None or projections[0] not in self._scheduled:
            return None
        self._fired += projections
        query, key = (self._kept[projection] for projection in projections)
        return query, key, self._groups

    def _empty(self, site: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def drop_rows(module: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ANN401 - hook
            return (args[0][:0], *args[1:]) if self._replaces(site) else None

        return drop_rows

    def _replaces(self, site: nn.Module) -> bool:
        """Whether what a site computes of its own is of no use, as it hands out what was kept."""
        return self._handing_out and site in self._scheduled

    def _hand_over(self, site: nn.Module, args: Any, output: torch.Tensor) -> Any:  # noqa: ANN401
        if site not in self._scheduled:
            return None
        if self._handing_out:
            self._fired.append(site)
            return self._kept[site].index_select(0, self._owner)
        self._kept[site] = output
        if len(self._kept) == len(self._scheduled):
            raise _Complete
        return None

    def _refuse(self, what: str) -> None:
        missed = len(self._scheduled) - len(set(self._fired) | set(self._kept))
        raise InjectionNotFired(
            f"an injection site {what} ({missed} of {len(self._scheduled)} never fired): "
            "this UNet or this version of diffusers computes them in another way"
        )


def _grouped(owner: torch.Tensor) -> torch.Tensor | None:
    """For each guidance row the rows that follow it, (G, S); None where they are not equally many.

    Also None unless the guidance rows are 0 to G - 1.
    """
    counts = owner.bincount()
    if not len(owner) or bool((counts != counts[0]).any()):
        return None
    return owner.argsort(stable=True).view(len(counts), -1)


def _uncompiled(block: nn.Module) -> Iterator[Callable[[], Any]]:
    """Makes a block that is compiled, and would run past its hooks, compute as it is.

    Yields what undoes it. The published sites are never compiled, see `tuning`.
    """
    program = block._compiled_call_impl
    if program is not None:
        block._compiled_call_impl = None
        yield partial(setattr, block, "_compiled_call_impl", program)
