"""The critic: a CLIP through which gradients flow, for methods that are guided by one.

In: pictures as tensors and texts. Out: embeddings of unit length (Radford et al., arXiv
2103.00020), and what its vision tower computes on the way: keys and hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from pnp_batch.models import DEMO, StableDiffusion
from pnp_batch.models.networks import CLIP, find, load, tokenizer

AUTO = "auto"
TEXTS_KEPT = 4096


def critic(name: str, model: StableDiffusion) -> Critic:
    """The critic of a name, loaded once by each process.

    Args:
        name: `auto`, `demo`, a directory or a hub id; `auto` is the embedded CLIP for the embedded
            model, else OpenAI's ViT-B/32.
        model: whose pictures it is to see.

    Raises:
        InvalidModel: there is none, or it is no CLIP.
    """
    if name == AUTO:
        name = DEMO if model.files.name == DEMO else CLIP
    return _loaded(name, str(model.device))


@lru_cache(maxsize=2)
def _loaded(name: str, device: str) -> Critic:
    return Critic(name, device)


class Critic:
    """A CLIP in transformers format, in float32; its own weights take no gradient.

    Attributes:
        side: of the pictures that it sees, in pixels.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import CLIPModel

        network = find(name)
        self._device = torch.device(device)
        self._model: Any = load(CLIPModel, network).to(self._device)
        self._tokenizer: Any = tokenizer(network)
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self.side = int(self._model.config.vision_config.image_size)
        prepared = network.config("preprocessor_config.json")
        mean, std = (prepared.get(part) or [0.5] * 3 for part in ("image_mean", "image_std"))
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (mean, std)
        )
        self._texts: dict[str, torch.Tensor] = {}

    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, float32 (D,), without gradient; cut to what CLIP reads."""
        if text not in self._texts:
            if len(self._texts) >= TEXTS_KEPT:
                self._texts.clear()
            tokens = self._tokenizer(
                [text], truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self._device)
            with torch.no_grad():
                hidden = self._model.text_model(
                    input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                ).pooler_output
                self._texts[text] = F.normalize(self._model.text_projection(hidden), dim=-1)[0]
        return self._texts[text]

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of B texts, (B, D)."""
        return torch.stack([self.text(text) for text in texts])

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """The embeddings of pictures (B, 3, H, W) with values in -1..1, float32 (B, D)."""
        hidden = self._vision(pixels).pooler_output
        return F.normalize(self._model.visual_projection(hidden), dim=-1)

    def hidden(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What each layer of the vision tower puts out, (B, tokens, width), class token first."""
        return self.keys_and_hidden(pixels)[1]

    def keys(self, pixels: torch.Tensor) -> torch.Tensor:
        """The keys of the last layer, its heads joined, (B, tokens, width), class token first."""
        return self.keys_and_hidden(pixels)[0]

    def keys_and_hidden(
        self, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`keys` and `hidden` of the same pictures, with one look at them."""
        with _outputs(self._last.k_proj) as kept:
            states = self._vision(pixels, output_hidden_states=True).hidden_states
        return kept[0], states

    def relevance(self, pixels: torch.Tensor, text: str) -> torch.Tensor:
        """Which parts of pictures (B, 3, H, W) a text speaks of, 0..1, (B, 1, rows, columns).

        Chefer et al., arXiv 2103.15679, eq. 5, of the last layer's attention alone, as Text2LIVE
        uses it: the class token's attention to each patch times the gradient of the similarity with
        respect to it, its positive part, the mean over the heads.
        """
        attn = self._last
        with torch.enable_grad(), _outputs(attn.q_proj, attn.k_proj, attn.v_proj) as kept:
            mixed: list[torch.Tensor] = []
            hook = attn.out_proj.register_forward_pre_hook(lambda module, args: mixed.append(*args))
            try:
                embedded = self.images(pixels.detach().requires_grad_())
            finally:
                hook.remove()
            (slope,) = torch.autograd.grad((embedded @ self.text(text)).sum(), mixed)
        heads = self._model.config.vision_config.num_attention_heads
        q, k, v, slope = (x.detach().unflatten(-1, (heads, -1)) for x in (*kept, slope))
        attention = torch.einsum("bhd,bkhd->bhk", q[:, 0], k).div(q.shape[-1] ** 0.5).softmax(-1)
        gradient = torch.einsum("bhd,bkhd->bhk", slope[:, 0], v)
        patches = (attention * gradient).clamp(min=0).mean(1)[:, 1:]
        low, high = patches.amin(1, keepdim=True), patches.amax(1, keepdim=True)
        side = math.isqrt(patches.shape[1])
        return ((patches - low) / (high - low).clamp(min=1e-12)).view(-1, 1, side, side)

    @property
    def _last(self) -> Any:  # noqa: ANN401 - transformers' CLIPAttention
        return self._model.vision_model.encoder.layers[-1].self_attn

    def _vision(self, pixels: torch.Tensor, **more: Any) -> Any:  # noqa: ANN401
        if pixels.shape[-1] != self.side or pixels.shape[-2] != self.side:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        values = ((pixels.float() + 1) / 2 - self._mean) / self._std
        return self._model.vision_model(pixel_values=values, **more)


@contextmanager
def _outputs(*modules: Any) -> Iterator[list[torch.Tensor]]:
    """What modules put out while this lasts, in the order in which they run."""
    kept: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda _, args, output: kept.append(output)) for m in modules]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def cut_outs(
    pixels: torch.Tensor,
    side: int,
    dice: Sequence[torch.Generator],
    count: int,
    *,
    smallest: float = 0.5,
) -> torch.Tensor:
    """Random views of pictures: squares of some of the side, turned a little, half mirrored.

    Args:
        pixels: (B, C, H, W).
        side: of the views.
        dice: of each picture its own generator, on the CPU, so that its views depend on it alone.
        count: views of each picture.
        smallest: share of the picture's side that a view has at least.

    Returns:
        (B * count, C, side, side), those of one picture one after another; gradients flow through.
    """
    drawn = torch.stack([torch.rand((count, 5), generator=own) for own in dice]).flatten(0, 1)
    scale = smallest + (1 - smallest) * drawn[:, 0]
    angle = (drawn[:, 1] - 0.5) * math.radians(30)
    mirror = torch.where(drawn[:, 2] < 0.5, -1.0, 1.0)
    across, down = ((2 * drawn[:, n] - 1) * (1 - scale) for n in (3, 4))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * mirror, -sin, across, sin * mirror, cos, down], dim=1)
    theta = rows.view(-1, 2, 3).to(pixels.device, pixels.dtype)
    grid = F.affine_grid(theta, [len(theta), 3, side, side], align_corners=False)
    repeated = pixels.repeat_interleave(count, dim=0)
    return F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
