"""Structure distance: how far a picture's layout moved, whatever its colours became."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from pnp_batch.errors import InvalidModel
from pnp_batch.evaluation.pair import Found, NotScored, Pair, pixels
from pnp_batch.models.networks import Network, load

KEYS = ("key", "k_proj")  # what transformers calls the projection, by model and version


class Structure:
    """Splice's self-similarity loss (Tumanyan et al., arXiv 2201.00424, eq. 4-5) as a distance.

    Of the keys of a ViT's last layer, heads joined, the cosine similarities of all tokens, the
    class token among them; the mean squared difference of the two pictures' matrices. PIE-Bench
    reports it with DINO's ViT-B/8 and times 1,000. Its code brings the short side to 224 pixels,
    the side of that ViT, as tensors: bilinear and without antialiasing; outputs are square, so here
    it is the ViT's own side. Pixels are in 0..1, as Splice has them and as the network was trained;
    PIE-Bench's code leaves them in 0..255, so its tables cannot be compared with these numbers.
    """

    name = "structure"
    scores = ("structure_distance",)

    def __init__(self, network: Network, device: str = "cpu") -> None:
        from transformers import AutoModel, CLIPModel

        config = network.config("config.json")
        self._device = torch.device(device)
        is_clip = config.get("model_type") == "clip"
        model = load(CLIPModel, network).vision_model if is_clip else load(AutoModel, network)
        self._model: Any = model.to(self._device)
        named = [m for name, m in model.named_modules() if name.rpartition(".")[2] in KEYS]
        if not named:
            raise InvalidModel(
                f"{network.name}: no attention keys found", "give a ViT in transformers format"
            )
        self._last: Any = named[-1]
        config = config.get("vision_config", config)
        self._side = int(config["image_size"])
        prepared = network.config("preprocessor_config.json")
        mean, std = (prepared.get(name) or [0.5] * 3 for name in ("image_mean", "image_std"))
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs, their pictures in one batch."""
        known = [p.source for p in pairs if not isinstance(p.source, NotScored)]
        outputs = [p.output for p in pairs if not isinstance(p.source, NotScored)]
        distances: Iterator[float] = iter([])
        if known:
            one, other = self.self_similarities([*known, *outputs]).chunk(2)
            distances = iter((one - other).square().mean(dim=(1, 2)).tolist())
        return [
            {"structure_distance": p.source if isinstance(p.source, NotScored) else next(distances)}
            for p in pairs
        ]

    @torch.inference_mode()
    def self_similarities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Cosines of the last layer's keys, float32 (B, tokens, tokens)."""
        size = (self._side, self._side)
        resized = [
            F.interpolate(pixels(image), size, mode="bilinear", align_corners=False)
            for image in images
        ]
        values = (torch.cat(resized) - self._mean) / self._std
        met: list[torch.Tensor] = []
        hook = self._last.register_forward_hook(lambda module, args, output: met.append(output))
        try:
            self._model(pixel_values=values.to(self._device))
        finally:
            hook.remove()
        keys = F.normalize(met[0].float(), dim=-1, eps=1e-8)
        return keys @ keys.mT
