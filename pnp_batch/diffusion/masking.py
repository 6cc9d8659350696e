"""Plug-and-Play inside a mask: guidance features and self-attention in a part of the picture.

In: what `sampling.translate` takes, and which words name the subject. Out: translated latents, and
the masks that were read from cross-attention on the way (after Cao et al., MasaCtrl, ICCV 2023,
arXiv 2304.08465, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import nn

from pnp_batch.diffusion.attention import SharedAttention
from pnp_batch.diffusion.injection import Injection, installed
from pnp_batch.diffusion.maps import fitted, recording, subject_masks
from pnp_batch.diffusion.sampling import Guidance, Injecting, Prompts, step
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.parameters import MASK_MODES

FOREGROUND, BACKGROUND, BOTH = MASK_MODES


@dataclass(frozen=True)
class Masking:
    """How the subjects of N rows are found, and what is done with them.

    Attributes:
        mode: `foreground` to inject inside the masks, `background` outside, `both` everywhere.
        text: embeddings of the texts that the guidance images are read with, (N, tokens, D).
        source, target: of each row the positions of its subject's tokens in that text, and in its
            target prompt.
        threshold, dilation, softness: see `subject_masks`.
    """

    mode: str
    text: torch.Tensor
    source: Sequence[Sequence[int]]
    target: Sequence[Sequence[int]]
    threshold: float
    dilation: int = 0
    softness: float = 0.0

    def masks(self, maps: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """The masks (N, 1, s, s) in cross-attention maps (N, tokens, s, s)."""
        return subject_masks(
            maps,
            tokens,
            threshold=self.threshold,
            dilation=self.dilation,
            softness=self.softness,
        )


@dataclass(frozen=True)
class Masked:
    """Translated rows and their masks.

    Attributes:
        latents: x0, float32 (N, C, h, w).
        source, target: the masks of each step that injects, (steps, N, 1, s, s); empty if none
            does.
    """

    latents: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Where:
    """Where in R pictures the guidance images are followed; without masks, everywhere.

    Attributes:
        share: how much of each place is injected, from 0 to 1, (R, 1, s, s); the rest is its own.
        parts: what of the guidance image is the subject, (R, 1, s, s): its queries attend to the
            keys of the subject alone, all others to those of the background.
    """

    share: torch.Tensor | None = None
    parts: torch.Tensor | None = None

    @classmethod
    def of(cls, mode: str, source: torch.Tensor, target: torch.Tensor) -> Where:
        """What a mode makes of the subject's place in the guidance image and in the translation.

        Inside is where the subject is in either: structure that is injected then also holds back
        what grows beyond it, and what is free may neither be cut off where the translated subject
        has grown, nor meet a ghost of the guidance image's where that was. Queries and keys are the
        guidance image's, so that only its own mask can part them.
        """
        if mode == BOTH:
            return cls(parts=source)
        inside = torch.maximum(source, target)
        return cls(share=inside if mode == FOREGROUND else 1 - inside)


@torch.inference_mode()
def translate_masked(
    unet: UNet,
    guidance: Guidance,
    prompts: Prompts,
    schedule: Schedule,
    injecting: Injecting,
    masking: Masking,
) -> Masked:
    """Plug-and-Play translation as `sampling.translate`, in a part of the picture.

    While injection lasts, each step first reads the subject's place in the guidance image, of each
    row in an evaluation of its own that ends with the last map. Its place in the translation is
    that in the mean of the target branch's maps of all steps before; in the first step, where there
    are none, it is the guidance image's.

    Raises:
        InjectionNotFired: a scheduled site was not met.
        InvalidModel: no cross-attention was met.
    """
    x = guidance.trajectory[0].index_select(0, guidance.owner)
    owner = torch.cat([guidance.owner, guidance.owner])
    seen = torch.zeros((), device=x.device)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    with installed(MaskedInjection(injecting.sites or unet.sites, owner)) as injection:
        for index, t in enumerate(schedule.timesteps):
            met, at = guidance.trajectory[index], injecting.at(index)
            if any(at.values()):
                with injection.silent():
                    maps = _maps(unet, met.index_select(0, guidance.owner), t, masking.text)
                source = masking.masks(maps, masking.source)
                target = masking.masks(seen / index, masking.target) if index else source
                found.append((source, target))
                injection.where = Where.of(
                    masking.mode, torch.cat([source, source]), torch.cat([target, target])
                )
            injection.guidance(partial(unet, met, t, guidance.text), **at)
            with recording(unet.module, x.shape[-1]) as read:
                text = prompts.at(index).both
                output = injection.translated(partial(unet, torch.cat([x, x]), t, text))
            seen = seen + read.take()[len(x) :]
            x = step(prompts.combine(output), x, schedule, index)
    masks = [torch.stack(of) for of in zip(*found, strict=True)] or [torch.empty(0)] * 2
    return Masked(x, *masks)


def _maps(unet: UNet, x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
    """The cross-attention maps of an evaluation, which goes no further than to the last of them."""
    with recording(unet.module, x.shape[-1], stop=True) as read:
        unet(x, t, text)
    return read.take()


class MaskedInjection(Injection):
    """Injection in a part of the pictures.

    Attributes:
        where: which part; may change between evaluations.
    """

    where = Where()

    def install(self) -> Iterator[Callable[[], Any]]:
        """Installs hooks and processors, yielding what removes each."""
        yield from super().install()
        for attention in self._sites.attention:
            injected = attention.processor
            attention.set_processor(_MaskedAttention(injected, self))
            yield partial(attention.set_processor, injected)

    def hands_out(self, attention: Any) -> bool:  # noqa: ANN401 - diffusers' Attention
        """Whether a self-attention is to use the guidance rows' queries and keys now."""
        return super()._replaces(attention.to_q)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside it, sites compute as if nothing were injected."""
        scheduled, self._scheduled = self._scheduled, frozenset()
        try:
            yield
        finally:
            self._scheduled = scheduled

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside it, sites may hand out once more what they have handed out in this evaluation."""
        fired = len(self._fired)
        yield
        del self._fired[fired:]

    def _replaces(self, site: nn.Module) -> bool:
        computed_too = site in self._features and self.where.share is not None
        return super()._replaces(site) and not computed_too

    def _hand_over(self, site: nn.Module, args: Any, output: torch.Tensor) -> Any:  # noqa: ANN401
        given = super()._hand_over(site, args, output)
        if given is None or self.where.share is None or site not in self._features:
            return given
        return _mixed(given, output, fitted(self.where.share, output.shape[-1]))


class _MaskedAttention:
    """An attention processor that follows the guidance rows in a part of the picture.

    Args:
        injected: computes with what the sites hand out, everywhere.
        injection: says where and when.
    """

    def __init__(self, injected: Any, injection: MaskedInjection) -> None:  # noqa: ANN401
        self._injected = injected
        self._own = injected.own if isinstance(injected, SharedAttention) else injected
        self._injection = injection

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        """As diffusers' `AttnProcessor2_0`, for self-attention."""
        own = partial(self._own, attn, hidden_states, *args)
        if not self._injection.hands_out(attn):
            return own(**more)
        where, tokens = self._injection.where, hidden_states.shape[1]
        if where.parts is not None:
            subject = _flat(where.parts, tokens)
            inside = own(**{**more, "attention_mask": _only(subject, hidden_states)})
            with self._injection.again():
                outside = own(**{**more, "attention_mask": _only(1 - subject, hidden_states)})
            return _mixed(inside, outside, subject.transpose(1, 2))
        given = self._injected(attn, hidden_states, *args, **more)
        if where.share is None:
            return given
        with self._injection.silent():
            computed = own(**more)
        return _mixed(given, computed, _flat(where.share, tokens).transpose(1, 2))


def _flat(masks: torch.Tensor, tokens: int) -> torch.Tensor:
    """Masks (R, 1, s, s) at the places of a square of so many tokens, (R, 1, tokens)."""
    return fitted(masks, isqrt(tokens)).flatten(2)


def _only(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What is added to attention's logits so that keys count as much as a part has of them.

    Where it has none at all, all keys count, as nothing else is there to attend to.
    """
    return part.clamp_min(torch.finfo(part.dtype).tiny).log().to(like.dtype)


def _mixed(inside: torch.Tensor, outside: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = share.to(inside.dtype)
    return share * inside + (1 - share) * outside
