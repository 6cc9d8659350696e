"""CLIP scores: whether a picture shows what its text says (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pnp_batch.evaluation.pair import Found, NotScored, Pair
from pnp_batch.models.networks import Network, load, tokenizer

TEXTS_KEPT = 4096
FLAT = 1e-5  # the length below which a change of unit vectors is rounding
NO_SOURCE_PROMPT = NotScored("the row has no source_prompt and no source_caption")
UNCHANGED = NotScored("output and guidance image, or their prompts, are the same")


class Clip:
    """A CLIP in transformers format: cosines of pictures and texts, in -1..1.

    100 times the cosine of output and prompt is what torchmetrics calls CLIPScore. The direction is
    that of StyleGAN-NADA (Gal et al., arXiv 2108.00946, eq. 2): the cosine between the change from
    source prompt to prompt and the change from guidance image to output.
    """

    name = "clip"
    scores = ("clip_similarity", "clip_source_similarity", "clip_direction")

    def __init__(self, network: Network, device: str = "cpu") -> None:
        from transformers import CLIPModel

        self._device = torch.device(device)
        self._prepare = Preparation(network)
        self._model: Any = load(CLIPModel, network).to(self._device)
        self._tokenizer: Any = tokenizer(network)
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self._texts: dict[str, torch.Tensor] = {}

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, in one batch of pictures."""
        sources = [pair.source for pair in pairs if not isinstance(pair.source, NotScored)]
        seen = iter(self.images([*(pair.output for pair in pairs), *sources]))
        outputs = [next(seen) for _ in pairs]
        before = [p.source if isinstance(p.source, NotScored) else next(seen) for p in pairs]
        return [self._score(*one) for one in zip(pairs, outputs, before, strict=True)]

    def _score(
        self, pair: Pair, output: torch.Tensor, source: torch.Tensor | NotScored
    ) -> dict[str, Found]:
        target = self.text(pair.prompt)
        found: dict[str, Found] = {"clip_similarity": float(output @ target)}
        if not pair.source_prompt:
            return {**found, **dict.fromkeys(self.scores[1:], NO_SOURCE_PROMPT)}
        before = self.text(pair.source_prompt)
        found["clip_source_similarity"] = float(output @ before)
        if isinstance(source, NotScored):
            return {**found, "clip_direction": source}
        changes = output - source, target - before
        if any(float(change.norm()) < FLAT for change in changes):
            return {**found, "clip_direction": UNCHANGED}
        return {**found, "clip_direction": float(F.cosine_similarity(*changes, dim=0))}

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embeddings of unit length, float32 (B, D)."""
        values = torch.cat([self._prepare(image) for image in images]).to(self._device)
        hidden = self._model.vision_model(pixel_values=values).pooler_output
        return F.normalize(self._model.visual_projection(hidden), dim=-1).cpu()

    @torch.inference_mode()
    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, of unit length, float32 (D,); cut to what CLIP reads."""
        if text not in self._texts:
            if len(self._texts) >= TEXTS_KEPT:
                self._texts.clear()
            tokens = self._tokenizer(
                [text], truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self._device)
            hidden = self._model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            embedded = F.normalize(self._model.text_projection(hidden), dim=-1)
            self._texts[text] = embedded[0].cpu()
        return self._texts[text]


class Preparation:
    """A picture as a vision tower wants it, by its preprocessor_config.json."""

    def __init__(self, network: Network) -> None:
        config = network.config("preprocessor_config.json")
        vision = network.config("config.json")
        vision = vision.get("vision_config", vision)
        self.side = int(_side(config.get("crop_size")) or vision["image_size"])
        self.mean = np.array(config.get("image_mean") or [0.5] * 3, np.float32)
        self.std = np.array(config.get("image_std") or [0.5] * 3, np.float32)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An RGB image, its short side resized (bicubic), its centre cut out: (1, 3, n, n)."""
        short = min(image.size)
        size = (self.side * image.width // short, self.side * image.height // short)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        values = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(values).permute(2, 0, 1)[None]


def _side(size: Any) -> int | None:  # noqa: ANN401 - a number or a mapping, by version
    return size.get("height") if isinstance(size, dict) else size
