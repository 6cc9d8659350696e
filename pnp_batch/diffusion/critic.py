"""The critic: a CLIP through which gradients flow, for methods that are guided by one.

In: pictures as tensors and texts. Out: embeddings of unit length (Radford et al., arXiv
2103.00020), and what its vision tower computes on the way: keys and hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from pnp_batch.errors import InvalidModel
from pnp_batch.models import DEMO, StableDiffusion
from pnp_batch.models.networks import CLIP, find, load

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
        from transformers import AutoTokenizer, CLIPModel

        network = find(name)
        self._device = torch.device(device)
        self._model: Any = load(CLIPModel, network).to(self._device)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(network.path))
        except (OSError, ValueError) as error:
            raise InvalidModel(
                f"{name}: no tokenizer", "name a folder that has the tokenizer of its CLIP"
            ) from error
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
        states: tuple[torch.Tensor, ...] = self._vision(
            pixels, output_hidden_states=True
        ).hidden_states
        return states

    def keys(self, pixels: torch.Tensor) -> torch.Tensor:
        """The keys of the last layer, its heads joined, (B, tokens, width), class token first."""
        kept: list[torch.Tensor] = []
        last = self._model.vision_model.encoder.layers[-1].self_attn.k_proj
        hook = last.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            self._vision(pixels)
        finally:
            hook.remove()
        return kept[0]

    def _vision(self, pixels: torch.Tensor, **more: Any) -> Any:  # noqa: ANN401
        if pixels.shape[-1] != self.side or pixels.shape[-2] != self.side:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        values = ((pixels.float() + 1) / 2 - self._mean) / self._std
        return self._model.vision_model(pixel_values=values, **more)


def cut_outs(
    pixels: torch.Tensor, side: int, dice: Sequence[torch.Generator], count: int
) -> torch.Tensor:
    """Random views of pictures: squares of 0.5 to 1 of the side, turned a little, half mirrored.

    Args:
        pixels: (B, 3, H, W).
        side: of the views.
        dice: of each picture its own generator, on the CPU, so that its views depend on it alone.
        count: views of each picture.

    Returns:
        (B * count, 3, side, side), those of one picture one after another; gradients flow through.
    """
    drawn = torch.stack([torch.rand((count, 5), generator=own) for own in dice]).flatten(0, 1)
    scale = 0.5 + 0.5 * drawn[:, 0]
    angle = (drawn[:, 1] - 0.5) * math.radians(30)
    mirror = torch.where(drawn[:, 2] < 0.5, -1.0, 1.0)
    across, down = ((2 * drawn[:, n] - 1) * (1 - scale) for n in (3, 4))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos * mirror, -sin, across, sin * mirror, cos, down], dim=1)
    theta = rows.view(-1, 2, 3).to(pixels.device, pixels.dtype)
    grid = F.affine_grid(theta, [len(theta), 3, side, side], align_corners=False)
    repeated = pixels.repeat_interleave(count, dim=0)
    return F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
