"""Control of attention: what the transformer blocks of a UNet attend to, given by a `Control`.

`controlled(unet, control)` installs attention processors for the length of a `with` block. In an
evaluation they hand the queries, keys and values of those attentions that the control wants to
it, and leave all others to their own processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pnp_batch.diffusion.attention import is_plain
from pnp_batch.diffusion.sites import transformers
from pnp_batch.errors import InvalidModel


class AttentionNotMet(InvalidModel):
    """An attention was not met exactly once: the picture would silently be something else."""


@dataclass(frozen=True)
class Site:
    """One attention of an evaluation.

    Attributes:
        layer: of its transformer block in the order of an evaluation, in SD 1.x and 2.x 0 to 15.
        cross: whether it is to the prompt.
        tokens: its queries.
    """

    layer: int
    cross: bool
    tokens: int


class Control(Protocol):
    """What happens in attention."""

    def acts(self, site: Site) -> bool:
        """Whether `attend` is asked there; if not, the attention is left as it is."""

    def attend(
        self, site: Site, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """What the queries get, (B, heads, tokens, d); of queries, keys and values likewise."""


@contextmanager
def controlled(unet: nn.Module, control: Control) -> Iterator[Controlled]:
    """Installs processors at all attentions and always removes them, also after an exception.

    Raises:
        InvalidModel: one of them computes in a way that cannot be controlled.
    """
    evaluation = Controlled(unet, control)
    with ExitStack() as stack:
        for remove in evaluation.install():
            stack.callback(remove)
        yield evaluation


class Controlled:
    """The UNet while its attention is controlled."""

    def __init__(self, unet: nn.Module, control: Control) -> None:
        self._attentions: list[tuple[int, bool, Any]] = [
            (layer, cross, block.attn2 if cross else block.attn1)
            for layer, block in enumerate(transformers(unet))
            for cross in (False, True)
        ]
        self._control = control
        self._met: list[tuple[int, bool]] = []

    def install(self) -> Iterator[Callable[[], Any]]:
        """Installs the processors, yielding what removes each."""
        for layer, _, attention in self._attentions:
            own = attention.processor
            if not is_plain(attention):
                raise InvalidModel(
                    f"transformer block {layer} computes its attention by {type(own).__name__}, "
                    "which cannot be controlled",
                    "use a Stable Diffusion 1.x or 2.x model",
                )
            attention.set_processor(_Processor(own, partial(self._attend, layer)))
            yield partial(attention.set_processor, own)

    def evaluate(self, evaluate: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs an evaluation of the UNet.

        Raises:
            AttentionNotMet: an attention was not met exactly once.
        """
        self._met = []
        output = evaluate()
        wanted = [(layer, cross) for layer, cross, _ in self._attentions]
        if sorted(self._met) != wanted:
            missed = len(set(wanted) - set(self._met))
            raise AttentionNotMet(
                f"{missed} of {len(wanted)} attentions were not met, {len(self._met)} calls in "
                "all: this UNet or this version of diffusers computes them in another way"
            )
        return output

    def _attend(
        self, layer: int, attn: Attention, hidden_states: torch.Tensor, text: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What an attention gives under control; None where it is left as it is."""
        site = Site(layer, text is not None, hidden_states.shape[1])
        self._met.append((layer, site.cross))
        if not self._control.acts(site):
            return None
        attended = hidden_states if text is None else text
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(attended), attn.to_v(attended))
        )
        mixed = self._control.attend(site, query, key, value)
        output: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return output


class _Processor:
    """An attention processor that asks first, and computes as another one does if not answered."""

    def __init__(self, own: Any, attend: Callable[..., torch.Tensor | None]) -> None:  # noqa: ANN401
        self._own = own
        self._attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> Any:  # noqa: ANN401
        output = self._attend(attn, hidden_states, encoder_hidden_states)
        if output is None:
            return self._own(attn, hidden_states, encoder_hidden_states, *args, **more)
        return attn.to_out[1](output)
