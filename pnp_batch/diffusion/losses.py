"""What methods guided by a CLIP share: losses, one number a row, and the walk down their gradient.

In: embeddings, keys and hidden states of a `Critic`. Out: losses (B,). Rows are independent: a sum
over the rows has each row's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from pnp_batch.diffusion.critic import Critic

Loss = Callable[[torch.Tensor], torch.Tensor]
# The noise of a row (`sampling.noise`) and the views of its pictures are drawn from one seed.
VIEWS = 0x51EE5
CONTRAST_TEMPERATURE = 0.07
SOURCE_TEXT, GUIDANCE_IMAGE = 0.4, 0.2


def dice(seed: int) -> torch.Generator:
    """What a row's views are drawn with, on the CPU; not the draws that its noise comes from."""
    return torch.Generator("cpu").manual_seed(seed ^ VIEWS)


def gradient(loss: Loss, x: torch.Tensor) -> torch.Tensor:
    """Of the sum of a loss over rows, at `x`."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        return torch.autograd.grad(loss(at).sum(), at)[0]


def descend(loss: Loss, x: torch.Tensor, steps: int, learning_rate: float) -> torch.Tensor:
    """Adam (Kingma & Ba, arXiv 1412.6980) from `x` down a loss; returns where it arrives."""
    at = x.clone()
    optimiser = torch.optim.Adam([at], lr=learning_rate)
    for _ in range(steps):
        at.grad = gradient(loss, at)
        optimiser.step()
    return at


def goal(
    critic: Critic, image: torch.Tensor, prompts: Sequence[str], sources: Sequence[str]
) -> torch.Tensor:
    """Where an edit should arrive in CLIP's space: text - 0.4 source text + 0.2 guidance image.

    Couairon et al., arXiv 2203.04705, eq. 2, with the coefficients of its published code; a row
    without a source text has no such term.

    Args:
        critic: embeds.
        image: the guidance images, (B, 3, H, W).
        prompts, sources: texts of the B rows.
    """
    away = SOURCE_TEXT * marked(sources, image)[:, None] * critic.texts(sources)
    found: torch.Tensor = critic.texts(prompts) - away + GUIDANCE_IMAGE * critic.images(image)
    return found


def marked(texts: Sequence[str], like: torch.Tensor) -> torch.Tensor:
    """1 for each of B texts that is not empty, else 0, (B,); of the device and type of `like`."""
    return like.new_tensor([float(bool(text)) for text in texts])


def spherical(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Half the squared angle between unit vectors (..., D) (Crowson et al., arXiv 2204.08583)."""
    distance: torch.Tensor = (a - b).norm(dim=-1).div(2).arcsin().square().mul(2)
    return distance


def direction(
    image: torch.Tensor, source: torch.Tensor, text: torch.Tensor, source_text: torch.Tensor
) -> torch.Tensor:
    """1 - cosine of what changed in the picture and in the text (Gal et al., arXiv 2108.00946).

    Args:
        image, source: embeddings of the picture and of the guidance image, (..., D).
        text, source_text: of the target text and of the source text, (..., D).
    """
    return 1 - F.cosine_similarity(image - source, text - source_text, dim=-1, eps=1e-7)


def structure(keys: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two pictures' self-similarity (Tumanyan et al., arXiv 2201.00424).

    Keys (B, tokens, width) in, cosines of all pairs of tokens within each picture compared.
    """
    own, kept = (F.normalize(x, dim=-1) for x in (keys, source))
    return (own @ own.mT - kept @ kept.mT).square().mean((1, 2))


def contrast(keys: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """How hard it is to tell each place's key in the source from those of other places.

    The contrastive loss of DiffuseIT (Kwon & Ye, arXiv 2209.15264, eq. 9) at temperature 0.07.
    """
    cosines = F.normalize(keys, dim=-1) @ F.normalize(source, dim=-1).mT / CONTRAST_TEMPERATURE
    return -cosines.log_softmax(-1).diagonal(dim1=1, dim2=2).mean(1)


def perceptual(states: tuple[torch.Tensor, ...], source: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Distance of two pictures in a tower's hidden states, in the form of LPIPS without weights.

    Zhang et al., arXiv 1801.03924, eq. 1: tokens of unit length, squared differences, the mean over
    places; here the mean over layers, too, and nothing is learned.
    """
    pairs = zip(states, source, strict=True)
    unit = [(F.normalize(own, dim=-1), F.normalize(kept, dim=-1)) for own, kept in pairs]
    return torch.stack([(a - b).square().sum(-1).mean(1) for a, b in unit]).mean(0)


def beyond(pixels: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of pixels (B, 3, H, W) from -1..1."""
    return (pixels - pixels.clamp(-1, 1)).square().mean((1, 2, 3))


def shown(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as a picture can show them, clamped to -1..1.

    Gradients pass where a step against them does not lead further out, as in VQGAN-CLIP's code.
    """
    return _Shown.apply(pixels)  # type: ignore[no-any-return, no-untyped-call]


class _Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(pixels)
        return pixels.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        (pixels,) = ctx.saved_tensors
        outwards = slope * (pixels - pixels.clamp(-1, 1)) < 0
        return slope.masked_fill(outwards, 0)
