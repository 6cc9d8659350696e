"""Plug-and-Play and SDEdit by hand, for the tests to compare `pnp_batch.diffusion` with.

One image, one prompt and one branch at a time; every UNet evaluation runs to its end; guidance and
translation are separate passes; the schedule is worked out from the betas in double precision. It
imports nothing of pnp_batch, and of diffusers it uses only the UNet that it is given.

PnP: Tumanyan et al., CVPR 2023, arXiv 2211.12572. DDIM: Song et al., arXiv 2010.02502. CFG: Ho and
Salimans, arXiv 2207.12598. v: Salimans and Ho, arXiv 2202.00512.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

# Decoder layers 0 to 11 as (up block, layer in it); those of the first block have no attention.
DECODER_LAYERS = [(block, layer) for block in range(4) for layer in range(3)]
ATTENTION_LAYERS = range(3, 12)


# ---------------------------------------------------------------------------------- schedule


@dataclass(frozen=True)
class Noise:
    """Descending sampling timesteps, alpha_bar of every training timestep, and what lies below."""

    timesteps: list[int]
    alpha_bar: list[float]
    final: float
    prediction: str

    def at(self, t: int | None) -> float:
        """alpha_bar at timestep t; None is what lies below the last sampling timestep."""
        return self.final if t is None else self.alpha_bar[t]


def noise_schedule(config: dict, steps: int) -> Noise:
    """The schedule that a model's scheduler configuration stands for."""
    n = config.get("num_train_timesteps", 1000)
    low, high = config["beta_start"], config["beta_end"]
    ramp = [i / (n - 1) for i in range(n)]
    if config.get("beta_schedule") == "scaled_linear":
        betas = [(low**0.5 + r * (high**0.5 - low**0.5)) ** 2 for r in ramp]
    else:
        betas = [low + r * (high - low) for r in ramp]

    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1.0 - beta
        alpha_bar.append(product)
    if config.get("rescale_betas_zero_snr"):  # Lin et al., arXiv 2305.08891, algorithm 1
        first, last = alpha_bar[0] ** 0.5, alpha_bar[-1] ** 0.5
        alpha_bar = [((a**0.5 - last) * first / (first - last)) ** 2 for a in alpha_bar]

    # Lin et al., arXiv 2305.08891, table 2: the three ways to choose timesteps.
    spacing = config.get("timestep_spacing", "leading")
    if spacing == "leading":
        rising = [i * (n // steps) + config.get("steps_offset", 0) for i in range(steps)]
    elif spacing == "trailing":
        rising = [round(n - i * n / steps) - 1 for i in reversed(range(steps))]
    else:
        rising = [round(i * (n - 1) / max(1, steps - 1)) for i in range(steps)]

    return Noise(
        timesteps=rising[::-1],
        alpha_bar=alpha_bar,
        final=1.0 if config.get("set_alpha_to_one", True) else alpha_bar[0],
        prediction=config.get("prediction_type", "epsilon"),
    )


def ddim(output, x, now: float, then: float, prediction: str):
    """DDIM eq. 12 with sigma = 0, from noise level `now` to noise level `then`, up or down.

    With prediction v = sqrt(ab) eps - sqrt(1 - ab) x0 (v, section 4), x0 and eps are solved for.
    """
    if prediction == "epsilon":
        eps = output
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    else:
        x0 = math.sqrt(now) * x - math.sqrt(1 - now) * output
        eps = math.sqrt(now) * output + math.sqrt(1 - now) * x
    return math.sqrt(then) * x0 + math.sqrt(1 - then) * eps


# ------------------------------------------------------------------------------ one evaluation


@dataclass(frozen=True)
class Features:
    """What PnP carries over, by decoder layer: f, and (q, k).

    And what DeepCache does: the output of decoder layer 10.
    """

    f: dict[int, torch.Tensor] = field(default_factory=dict)
    qk: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    deep: torch.Tensor | None = None


NOTHING = Features()


class NotingConv(torch.nn.Module):
    """A convolution that notes what it puts out, or that puts out what it is given."""

    def __init__(self, conv, given):
        super().__init__()
        self.conv, self.given, self.noted = conv, given, None

    def forward(self, x):
        self.noted = self.conv(x) if self.given is None else self.given
        return self.noted


class NotingAttention:
    """softmax(q k^T / sqrt(d)) v of each head; notes q and k, or uses those it is given."""

    def __init__(self, given):
        self.given, self.noted = given, None

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        assert encoder_hidden_states is None
        assert attention_mask is None
        q, k = (attn.to_q(x), attn.to_k(x)) if self.given is None else self.given
        self.noted = (q, k)
        q, k, v = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in (q, k, attn.to_v(x)))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def evaluate(unet, x, t: int, text, given: Features = NOTHING):
    """One full UNet evaluation of one latent (1, C, h, w) with one text (1, tokens, D).

    Returns its output and the features it met (PnP, section 4): those of its own, or the given.
    """
    blocks = [unet.up_blocks[b].resnets[n] for b, n in DECODER_LAYERS]
    layers = {m: unet.up_blocks[m // 3].attentions[m % 3] for m in ATTENTION_LAYERS}
    attentions = {m: layer.transformer_blocks[0].attn1 for m, layer in layers.items()}
    processors = {m: attention.processor for m, attention in attentions.items()}

    deep = []

    def note_or_give(module, args, output):
        deep.append(output[0] if given.deep is None else given.deep)
        return (deep[0], *output[1:])

    hook = layers[10].register_forward_hook(note_or_give)
    convs = [NotingConv(block.conv2, given.f.get(m)) for m, block in enumerate(blocks)]
    noting = {m: NotingAttention(given.qk.get(m)) for m in attentions}
    for block, conv in zip(blocks, convs, strict=True):
        block.conv2 = conv
    for m, attention in attentions.items():
        attention.processor = noting[m]
    try:
        with torch.no_grad():
            output = unet(x, t, text).sample
    finally:
        hook.remove()
        for block, conv in zip(blocks, convs, strict=True):
            block.conv2 = conv.conv
        for m, attention in attentions.items():
            attention.processor = processors[m]
    f = {m: conv.noted for m, conv in enumerate(convs)}
    return output, Features(f, {m: one.noted for m, one in noting.items()}, deep[0])


# ---------------------------------------------------------------------------------- algorithms


def inversion_timesteps(noise: Noise, multiple: int) -> list[int]:
    """The sampling timesteps ascending, each interval between two of them cut into `multiple`.

    So is the interval from the image, where time is 0, to the lowest of them.
    """
    rising = noise.timesteps[::-1]
    below = [round(k * rising[0] / multiple) for k in range(1, multiple)]
    timesteps = [*(t for t in dict.fromkeys(below) if 0 < t < rising[0]), rising[0]]
    for a, b in pairwise(rising):
        timesteps += [a + round(k * (b - a) / multiple) for k in range(1, multiple + 1)]
    return timesteps


def reusing(unet, every: int):
    """`evaluate`, which but in every so many-th step takes over a branch's own deep features.

    They are what decoder layer 10 put out in the branch's latest whole step (DeepCache: Ma et al.,
    arXiv 2312.00858, section 3.2).
    """
    deep = {}

    def met(branch: str, step: int, x, t: int, text, given: Features = NOTHING):
        given = replace(given, deep=deep[branch] if step % every else None)
        output, features = evaluate(unet, x, t, text, given)
        deep[branch] = features.deep
        return output, features

    return met


def invert(
    unet, x0, text, noise: Noise, multiple: int = 1, every: int = 1
) -> dict[int, torch.Tensor]:
    """DDIM inversion (DDIM, section 4.3) of one latent image; the latents by timestep.

    From level s up to t the UNet is evaluated at (x_s, t); what it says is read at level s.
    """
    latents, x, s, met = {}, x0, None, reusing(unet, every)
    for step, t in enumerate(inversion_timesteps(noise, multiple)):
        output, _ = met("guidance", step, x, t, text)
        x = ddim(output, x, noise.at(s), noise.at(t), noise.prediction)
        latents[t] = x
        s = t
    return latents


def sample(unet, x, text, negative, scale: float, noise: Noise):
    """Plain DDIM sampling with classifier-free guidance (CFG, eq. 6, with scale = 1 + w).

    Returns x0 and the latents met, by timestep: the trajectory of a generated guidance image.
    """
    latents = {}
    for t, s in zip(noise.timesteps, [*noise.timesteps[1:], None], strict=True):
        latents[t] = x
        unconditional, _ = evaluate(unet, x, t, negative)
        conditional, _ = evaluate(unet, x, t, text)
        output = unconditional + scale * (conditional - unconditional)
        x = ddim(output, x, noise.at(t), noise.at(s), noise.prediction)
    return x, latents


@dataclass(frozen=True)
class Edit:
    """What is asked of one translation: embeddings (1, tokens, D), scale, and what PnP injects."""

    target: torch.Tensor
    negative: torch.Tensor
    scale: float
    pnp_f_t: float
    pnp_attn_t: float
    f_layers: Collection[int] = (4,)
    attn_layers: Collection[int] = range(4, 12)


def sdedit(unet, x0, drawn, strength: float, edit: Edit, noise: Noise):
    """SDEdit (Meng et al., arXiv 2108.01073, algorithm 1) of one latent image with one prompt.

    Of all timesteps the last int(steps * strength) are sampled, from x0 noised to the first of
    them with `drawn`; at strength 1 nothing is left of x0.
    """
    steps = len(noise.timesteps)
    left = noise.timesteps[steps - int(steps * strength) :]
    if not left:
        return x0
    level = noise.at(left[0])
    x = math.sqrt(level) * x0 + math.sqrt(1 - level) * drawn if strength < 1 else drawn
    rest = replace(noise, timesteps=left)
    return sample(unet, x, edit.target, edit.negative, edit.scale, rest)[0]


def guidance_pass(unet, trajectory, text, noise: Noise, every: int = 1) -> dict[int, Features]:
    """The features of the guidance image at every sampling timestep (PnP, section 4)."""
    met = reusing(unet, every)
    return {t: met("guidance", i, trajectory[t], t, text)[1] for i, t in enumerate(noise.timesteps)}


def translated_pass(
    unet, x, features: dict[int, Features], edit: Edit, noise: Noise, every: int = 1
):
    """PnP, algorithm 1: from x_T of the guidance image to x0 of its translation.

    Step i takes f while i < int(steps * pnp_f_t), and q, k while i < int(steps * pnp_attn_t), of
    their layers, in the negative and in the target branch alike.
    """
    steps, met = len(noise.timesteps), reusing(unet, every)
    for i, t in enumerate(noise.timesteps):
        s = noise.timesteps[i + 1] if i + 1 < steps else None
        given = Features(
            f=_of(features[t].f, edit.f_layers, i < int(steps * edit.pnp_f_t)),
            qk=_of(features[t].qk, edit.attn_layers, i < int(steps * edit.pnp_attn_t)),
        )
        negative, _ = met("negative", i, x, t, edit.negative, given)
        target, _ = met("target", i, x, t, edit.target, given)
        output = negative + edit.scale * (target - negative)
        x = ddim(output, x, noise.at(t), noise.at(s), noise.prediction)
    return x


def _of(by_layer: dict, layers: Collection[int], wanted: bool) -> dict:
    return {m: value for m, value in by_layer.items() if wanted and m in layers}


def translate(unet, trajectory, source_text, edit: Edit, noise: Noise, every: int = 1):
    """Guidance pass, then translated pass, of one image with one prompt."""
    features = guidance_pass(unet, trajectory, source_text, noise, every)
    return translated_pass(unet, trajectory[noise.timesteps[0]], features, edit, noise, every)
