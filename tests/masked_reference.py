"""Plug-and-Play inside a mask by hand, one image and one prompt at a time, beside `reference`.

Of diffusers it uses only the UNet that it is given, and of pnp_batch nothing. Masks: Cao et al.,
arXiv 2304.08465, section 3.3. For UNets whose latents have 8 x 8 places: the maps are those of the
first down block, where it has attention, and of the last up block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests import reference
from tests.reference import Edit, Features, Noise


@dataclass(frozen=True)
class Subject:
    """How one row's subject is found: the text that its image is read with, tokens, the mask."""

    text: torch.Tensor
    source: Sequence[int]
    target: Sequence[int]
    threshold: float
    dilation: int = 0
    softness: float = 0.0


# ------------------------------------------------------------------------------------- masks


def mask_of(maps, tokens: Sequence[int], subject: Subject):
    """A mask (n, n) of maps (tokens, n, n), cell by cell."""
    n = maps.shape[-1]
    if not len(tokens):
        return torch.ones(n, n)
    heat = sum(maps[token] for token in tokens)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    hard = [[float(heat[i, j] > subject.threshold) for j in range(n)] for i in range(n)]
    d, grown = subject.dilation, torch.zeros(n, n)
    for i in range(n):
        for j in range(n):
            near = [row[max(0, j - d) : j + d + 1] for row in hard[max(0, i - d) : i + d + 1]]
            grown[i, j] = max(map(max, near))
    return blurred(grown, subject.softness) if subject.softness else grown


def blurred(mask, deviation: float):
    """A Gaussian blur of a mask (n, n) that goes on beyond its edge as it is there."""
    n, reach = len(mask), math.ceil(3 * deviation)
    offsets = range(-reach, reach + 1)
    weights = {
        (a, b): math.exp(-(a * a + b * b) / (2 * deviation**2)) for a in offsets for b in offsets
    }
    result = torch.zeros(n, n)
    for i in range(n):
        for j in range(n):
            for (a, b), weight in weights.items():
                cell = mask[min(max(i + a, 0), n - 1), min(max(j + b, 0), n - 1)]
                result[i, j] += weight * cell / sum(weights.values())
    return result


def resized(mask, side: int):
    """A mask (n, n) with linear interpolation between its cells, read at side x side places."""
    n = len(mask)
    result = torch.zeros(side, side)
    for i in range(side):
        for j in range(side):
            y, x = ((k + 0.5) * n / side - 0.5 for k in (i, j))
            top, left = math.floor(y), math.floor(x)
            for a, share_a in ((top, top + 1 - y), (top + 1, y - top)):
                for b, share_b in ((left, left + 1 - x), (left + 1, x - left)):
                    if share_a and share_b:
                        result[i, j] += share_a * share_b * mask[a, b]
    return result


# ------------------------------------------------------------------------------ one evaluation


class NotingCross:
    """Cross-attention that notes its probabilities, the mean of its heads, (places, tokens)."""

    def __init__(self):
        self.noted = None

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        q, k, v = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for y in (
                attn.to_q(x),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        self.noted = weights[0].mean(dim=0)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def with_maps(unet, evaluate):
    """What an evaluation gives, and the maps (tokens, 8, 8) that it met, the mean over layers."""
    layers = [*getattr(unet.down_blocks[0], "attentions", ()), *unet.up_blocks[3].attentions]
    blocks = [layer.transformer_blocks[0] for layer in layers]
    processors = [block.attn2.processor for block in blocks]
    noting = [NotingCross() for _ in blocks]
    for block, one in zip(blocks, noting, strict=True):
        block.attn2.processor = one
    try:
        result = evaluate()
    finally:
        for block, processor in zip(blocks, processors, strict=True):
            block.attn2.processor = processor
    maps = sum(one.noted for one in noting) / len(noting)
    return result, maps.T.unflatten(1, (8, 8))


class MixingConv(torch.nn.Module):
    """A convolution whose output is `share` of what it is given and for the rest its own."""

    def __init__(self, conv, given, share):
        super().__init__()
        self.conv, self.given, self.share = conv, given, share

    def forward(self, x):
        own = self.conv(x)
        share = resized(self.share, own.shape[-1])
        return share * self.given + (1 - share) * own


class MixingAttention:
    """Self-attention with the q and k it is given where `share` is 1, and its own where it is 0.

    With `parts`, it has the given ones everywhere, but places in and outside of that mask attend
    to their own side alone.
    """

    def __init__(self, given, share, parts):
        self.given, self.share, self.parts = given, share, parts

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        def attend(q, k, keys=None):
            q, k, v = (
                y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in (q, k, attn.to_v(x))
            )
            weights = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))
            if keys is not None and keys.sum() > 0:
                weights = weights * keys
            weights = weights / weights.sum(dim=-1, keepdim=True)
            return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

        side = math.isqrt(x.shape[1])
        if self.parts is None:
            share = resized(self.share, side).flatten()[:, None]
            return share * attend(*self.given) + (1 - share) * attend(attn.to_q(x), attn.to_k(x))
        inside = resized(self.parts, side).flatten()
        return inside[:, None] * attend(*self.given, inside) + (1 - inside)[:, None] * attend(
            *self.given, 1 - inside
        )


def evaluate(unet, x, t: int, text, given: Features, share, parts):
    """One UNet evaluation with features of another mixed into it; `parts` mixes attention alone."""
    blocks = {m: unet.up_blocks[m // 3].resnets[m % 3] for m in given.f}
    attentions = {
        m: unet.up_blocks[m // 3].attentions[m % 3].transformer_blocks[0].attn1 for m in given.qk
    }
    convs = {m: block.conv2 for m, block in blocks.items()}
    processors = {m: attention.processor for m, attention in attentions.items()}
    everywhere = torch.ones(8, 8)
    for m, block in blocks.items():
        own = everywhere if parts is not None else share
        block.conv2 = MixingConv(convs[m], given.f[m], own)
    for m, attention in attentions.items():
        attention.processor = MixingAttention(given.qk[m], share, parts)
    try:
        with torch.no_grad():
            return unet(x, t, text).sample
    finally:
        for m, block in blocks.items():
            block.conv2 = convs[m]
        for m, attention in attentions.items():
            attention.processor = processors[m]


# ---------------------------------------------------------------------------------- algorithm


def translate(unet, trajectory, source_text, edit: Edit, subject: Subject, mode: str, noise: Noise):
    """Plug-and-Play in a mask: x0, and of each step that injects the source and the target mask."""
    steps, x = len(noise.timesteps), trajectory[noise.timesteps[0]]
    seen, masks = [], []
    for i, t in enumerate(noise.timesteps):
        s = noise.timesteps[i + 1] if i + 1 < steps else None
        use_f, use_qk = i < int(steps * edit.pnp_f_t), i < int(steps * edit.pnp_attn_t)
        given, share, parts = Features(), None, None
        if use_f or use_qk:
            _, features = reference.evaluate(unet, trajectory[t], t, source_text)
            given = Features(
                f={m: f for m, f in features.f.items() if use_f and m in edit.f_layers},
                qk={m: qk for m, qk in features.qk.items() if use_qk and m in edit.attn_layers},
            )
            _, maps = with_maps(
                unet,
                lambda t=t: evaluate(unet, trajectory[t], t, subject.text, Features(), None, None),
            )
            source = mask_of(maps, subject.source, subject)
            target = source
            if seen:
                target = mask_of(sum(seen) / len(seen), subject.target, subject)
            masks.append((source, target))
            inside = torch.maximum(source, target)
            share = {"foreground": inside, "background": 1 - inside, "both": None}[mode]
            parts = source if mode == "both" else None
        negative = evaluate(unet, x, t, edit.negative, given, share, parts)
        positive, maps = with_maps(
            unet,
            lambda x=x, t=t, own=(given, share, parts): evaluate(unet, x, t, edit.target, *own),
        )
        seen.append(maps)
        output = negative + edit.scale * (positive - negative)
        x = reference.ddim(output, x, noise.at(t), noise.at(s), noise.prediction)
    return x, masks
