"""Prompt-to-Prompt, MasaCtrl and four ways back from an inversion by hand, to compare with.

One image, one row and one branch at a time, attention as explicit softmax, Adam and the alignment of
prompts written out. It imports nothing of pnp_batch, and of diffusers it uses only the UNet.

P2P: Hertz et al., arXiv 2208.01626. MasaCtrl: Cao et al., arXiv 2304.08465. Null-text: Mokady et
al., arXiv 2211.09794. Direct: Ju et al., arXiv 2310.01506. Edit-friendly: Huberman-Spiegelglas et
al., arXiv 2304.06140.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.reference import Noise, ddim

# ---------------------------------------------------------------------------- one evaluation


@dataclass(frozen=True)
class Met:
    """An attention of one evaluation: which block, to what, and (heads, places, d) each."""

    layer: int
    cross: bool
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def p(self):
        """softmax(q k^T / sqrt(d)), (heads, places, attended)."""
        return torch.softmax(self.q @ self.k.transpose(1, 2) / math.sqrt(self.q.shape[-1]), dim=-1)


Rule = Callable[[Met, list[Met]], torch.Tensor]


def plain(met: Met, before: list[Met]) -> torch.Tensor:
    """Attention as it is."""
    return met.p @ met.v


class Ruled:
    """All attentions of a UNet: each is noted, then a rule says what it gives."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.met = rule, []

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        text = x if encoder_hidden_states is None else encoder_hidden_states
        assert len(x) == 1
        q, k, v = (
            y[0].unflatten(-1, (attn.heads, -1)).transpose(0, 1)
            for y in (attn.to_q(x), attn.to_k(text), attn.to_v(text))
        )
        # Each block asks for its self-attention, then for that to the text.
        met = Met(len(self.met) // 2, len(self.met) % 2 == 1, q, k, v)
        assert met.cross == (encoder_hidden_states is not None)
        self.met.append(met)
        out = self.rule(met, self.met[:-1])
        return attn.to_out[0](out.transpose(0, 1).flatten(1)[None])


def evaluate(unet, x, t: int, text, rule: Rule = plain):
    """One UNet evaluation of a latent (1, C, h, w); its output, and the attentions it met."""
    before = dict(unet.attn_processors)
    ruled = Ruled(rule)
    unet.set_attn_processor(ruled)
    try:
        output = unet(x, t, text).sample
    finally:
        unet.set_attn_processor(before)
    return output, ruled.met


# -------------------------------------------------------------------------------- ways back


@dataclass(frozen=True)
class Image:
    """A guidance image: its trajectory by timestep, x0, and its source prompt (1, tokens, D)."""

    trajectory: dict[int, torch.Tensor]
    x0: torch.Tensor
    text: torch.Tensor


def below(noise: Noise, i: int) -> int | None:
    return noise.timesteps[i + 1] if i + 1 < len(noise.timesteps) else None


def down(output, x, noise: Noise, i: int):
    """One DDIM step."""
    levels = noise.at(noise.timesteps[i]), noise.at(below(noise, i))
    return ddim(output, x, *levels, noise.prediction)


def guided(negative, target, scale: float):
    return negative + scale * (target - negative)


def null_text(unet, image: Image, empty, noise: Noise, scale: float = 7.5):
    """For each step the optimised embedding, and how many inner steps it took."""
    steps = len(noise.timesteps)
    x, u, found, taken = image.trajectory[noise.timesteps[0]], empty, [], []
    for i, t in enumerate(noise.timesteps):
        s = below(noise, i)
        aim = image.x0 if s is None else image.trajectory[s]
        with torch.no_grad():
            conditional, _ = evaluate(unet, x, t, image.text)
        rate = 1e-2 * (1 - (i * 50 / steps) / 100)
        enough = 1e-5 + (i * 50 / steps) * 2e-5
        m, v = torch.zeros_like(u), torch.zeros_like(u)
        for n in range(1, 11):
            u = u.detach().requires_grad_()
            unconditional, _ = evaluate(unet, x, t, u)
            reached = down(guided(unconditional, conditional, scale), x, noise, i)
            loss = ((reached - aim) ** 2).mean()
            if loss.item() < enough:
                break
            (slope,) = torch.autograd.grad(loss, u)
            # Kingma & Ba, arXiv 1412.6980, algorithm 1.
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            with torch.no_grad():
                u = u - rate * (m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
        taken.append(n)
        with torch.no_grad():
            unconditional, _ = evaluate(unet, x, t, u)
        x = down(guided(unconditional, conditional, scale), x, noise, i)
        found.append(u.detach())
    return found, taken


@torch.no_grad()
def sample(unet, x, target, negatives: list, scale: float, noise: Noise):
    """Guided sampling with a negative embedding of each step."""
    for i, t in enumerate(noise.timesteps):
        negative, _ = evaluate(unet, x, t, negatives[i])
        conditional, _ = evaluate(unet, x, t, target)
        x = down(guided(negative, conditional, scale), x, noise, i)
    return x


@torch.no_grad()
def edit_friendly(unet, x0, drawn, source, empty, target, negative, scale: float, noise: Noise):
    """First all z of the source (algorithm 1), then the edit with them."""
    steps = len(noise.timesteps)
    first = int(0.36 * steps)

    def mean_and_sigma(output, x, i):
        now, then = noise.at(noise.timesteps[i]), noise.at(below(noise, i))
        sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        if noise.prediction == "epsilon":
            eps = output
            clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        else:
            clean = math.sqrt(now) * x - math.sqrt(1 - now) * output
            eps = math.sqrt(now) * output + math.sqrt(1 - now) * x
        return math.sqrt(then) * clean + math.sqrt(1 - then - sigma**2) * eps, sigma

    def predict(x, i, unconditional, conditional, by):
        t = noise.timesteps[i]
        a, _ = evaluate(unet, x, t, unconditional)
        b, _ = evaluate(unet, x, t, conditional)
        return mean_and_sigma(guided(a, b, by), x, i)

    xs = [
        math.sqrt(noise.at(t)) * x0 + math.sqrt(1 - noise.at(t)) * own
        for t, own in zip(noise.timesteps, drawn, strict=True)
    ]
    zs = {}
    for i in range(first, steps):
        mean, sigma = predict(xs[i], i, empty, source, 3.5)
        zs[i] = ([*xs, x0][i + 1] - mean) / sigma if sigma > 0 else torch.zeros_like(x0)
    x = xs[first]
    for i in range(first, steps):
        mean, sigma = predict(x, i, negative, target, scale)
        x = mean + sigma * zs[i]
    return x


# ------------------------------------------------------------------------ source and target


@dataclass(frozen=True)
class Row:
    """What is asked of one row: embeddings (1, tokens, D), and the negative one of each step."""

    target: torch.Tensor
    negatives: list[torch.Tensor]
    scale: float


@dataclass
class Edit:
    """The rules of a row's two halves in step i; each sees the attentions of the source's half of
    its kind, and the negative one also those of the target half and of its source."""

    target: Callable[[int, list[Met]], Rule] = lambda i, met: plain
    negative: Callable[[int, list[Met], list[Met], list[Met]], Rule] = lambda i, *met: plain
    blend: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] = lambda i, x, source: x
    maps: list[tuple[list[Met], list[Met]]] = field(default_factory=list)


@torch.no_grad()
def beside(unet, image: Image, sources: list, row: Row, edit: Edit, noise: Noise, direct: bool):
    """Source and target, step by step; `sources` are the source's negatives, at scale 7.5."""
    s = x = image.trajectory[noise.timesteps[0]]
    for i, t in enumerate(noise.timesteps):
        if direct:
            s = image.trajectory[t]
        s_negative, base = evaluate(unet, s, t, sources[i])
        s_target, met = evaluate(unet, s, t, image.text)
        target, own = evaluate(unet, x, t, row.target, edit.target(i, met))
        negative, _ = evaluate(unet, x, t, row.negatives[i], edit.negative(i, base, met, own))
        s = down(guided(s_negative, s_target, 7.5), s, noise, i)
        if direct:
            s = image.x0 if below(noise, i) is None else image.trajectory[below(noise, i)]
        x = down(guided(negative, target, row.scale), x, noise, i)
        edit.maps.append((met, own))
        x = edit.blend(i, x, s)
    return x


def heat(met: list[Met], places: int, tokens: list[int]):
    """The summed maps of some tokens, mean over heads and the blocks of so many places."""
    maps = [one.p.mean(dim=0) for one in met if one.cross and one.q.shape[1] == places]
    mean = sum(maps) / len(maps)
    side = math.isqrt(places)
    return mean[:, tokens].sum(dim=1).view(side, side)


def binary(heat, threshold: float):
    low, high = heat.min(), heat.max()
    return ((heat - low) / (high - low) > threshold).float()


# -------------------------------------------------------------------------- Prompt-to-Prompt


def letters(prompt: str) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """A prompt as the tiny tokenizer reads it, by letters: all tokens, and words by positions.

    The last letter of a word is a token of its own; so is a comma.
    """
    tokens, words = ["<"], []
    for word in prompt.split():
        bare = word.rstrip(",")
        at = list(range(len(tokens), len(tokens) + len(bare)))
        tokens += [*bare[:-1], bare[-1] + "."]
        words.append((bare, at))
        tokens += [","] * (len(word) - len(bare))
    return [*tokens, ">"], words


def needleman_wunsch(x: list[str], y: list[str]) -> dict[int, int]:
    """For each place of y the place of x it is aligned with, if any: match 1, mismatch -1, gap 0.

    Where several alignments are as good, a gap opposite y is taken first, then one opposite x.
    """
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    way = [[""] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            options = {
                "left": score[i][j - 1],
                "up": score[i - 1][j],
                "both": score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1),
            }
            score[i][j] = max(options.values())
            way[i][j] = next(name for name, value in options.items() if value == score[i][j])
    found, i, j = {}, len(x), len(y)
    while i and j:
        if way[i][j] == "both":
            found[j - 1] = i - 1
        i, j = i - (way[i][j] != "left"), j - (way[i][j] != "up")
    return found


def edited(base, own, source: str, target: str, factors: dict[str, float]):
    """The target's maps (heads, places, tokens), column by column."""
    (x, old), (y, new) = letters(source), letters(target)
    columns = list(own.unbind(dim=2))
    if source:
        for j, i in needleman_wunsch(x, y).items():
            columns[j] = base[:, :, i]
        for j in range(len(y), own.shape[2]):
            columns[j] = base[:, :, j]
        if len(old) == len(new):
            for (_, at), (_, to) in zip(old, new, strict=True):
                for n, j in enumerate(to):
                    if len(at) == len(to):
                        columns[j] = base[:, :, at[n]]
                    else:
                        columns[j] = base[:, :, at].sum(dim=2) / len(to)
    for word, at in new:
        for j in at:
            columns[j] = columns[j] * factors.get(word, 1.0)
    return torch.stack(columns, dim=2)


def prompt_to_prompt(source: str, target: str, factors, cross_steps: int, self_steps: int) -> Edit:
    def rule(i: int, met: list[Met]) -> Rule:
        def attend(own: Met, before: list[Met]):
            of_source = met[2 * own.layer + own.cross]
            if own.cross and i < cross_steps:
                return edited(of_source.p, own.p, source, target, factors) @ own.v
            if not own.cross and i < self_steps and own.q.shape[1] <= 256:
                return of_source.p @ own.v
            return own.p @ own.v

        return attend

    return Edit(target=rule)


def with_blend(
    edit: Edit, tokens: tuple[list[int], list[int]], threshold: float, first: int, grow=0
):
    """Local blend: outside the union of two masks, of maps summed over the steps, the source."""

    def blend(i: int, x, s):
        if i < first:
            return x
        side = x.shape[-1]
        both = []
        for half, own in enumerate(tokens):
            total = sum(heat(step[half], side**2, own) for step in edit.maps)
            both.append(binary(total, threshold) if own else torch.zeros(side, side))
        mask = torch.maximum(*both) if any(tokens) else torch.ones(side, side)
        if grow:
            n = 2 * grow + 1
            mask = torch.nn.functional.max_pool2d(mask[None, None], n, 1, grow)[0, 0]
        return mask * x + (1 - mask) * s

    edit.blend = blend
    return edit


# ---------------------------------------------------------------------------------- MasaCtrl


def masactrl(first: int, layer: int, tokens=None, threshold: float = 0.1, places: int = 64) -> Edit:
    """Keys and values of the source, from a step and a block on.

    `tokens` are those of the subject in both prompts, for the mask-guided form; its maps are those
    of so many places that were met before.
    """

    def attend(own: Met, of_source: Met, masks):
        mixed = Met(own.layer, False, own.q, of_source.k, of_source.v)
        if masks is None:
            return mixed.p @ mixed.v
        in_source, in_target = masks
        scores = mixed.q @ mixed.k.transpose(1, 2) / math.sqrt(mixed.q.shape[-1])

        def only(keys):
            barred = scores.masked_fill(keys == 0, -math.inf) if keys.any() else scores
            return torch.softmax(barred, dim=-1) @ mixed.v

        mask = in_target[:, None]
        return only(in_source) * mask + only(1 - in_source) * (1 - mask)

    def masks(own: Met, met: list[Met], so_far: list[Met]):
        halves = [half[: 2 * own.layer] for half in (met, so_far)]
        if tokens is None or not any(one.cross and one.q.shape[1] == places for one in halves[0]):
            return None
        side, full = math.isqrt(own.q.shape[1]), math.isqrt(places)
        found = []
        for half, at in zip(halves, tokens, strict=True):
            mask = binary(heat(half, places, at), threshold) if at else torch.ones(full, full)
            found.append(mask[:: full // side, :: full // side].flatten())
        return found

    def applies(own: Met, i: int) -> bool:
        return not own.cross and i >= first and own.layer >= layer

    def target(i: int, met: list[Met]) -> Rule:
        return lambda own, before: (
            attend(own, met[2 * own.layer], masks(own, met, before))
            if applies(own, i)
            else plain(own, before)
        )

    def negative(i: int, base: list[Met], met: list[Met], of_target: list[Met]) -> Rule:
        return lambda own, before: (
            attend(own, base[2 * own.layer], masks(own, met, of_target))
            if applies(own, i)
            else plain(own, before)
        )

    return Edit(target=target, negative=negative)
