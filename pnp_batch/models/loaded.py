"""A model in memory, on one device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pnp_batch.models.files import ModelFiles

if TYPE_CHECKING:
    import torch
    from PIL import Image


class StableDiffusion:
    """A loaded model on one device: text and pictures to tensors, and latents to pictures.

    Every text and every picture is encoded on its own, so that no result depends on neighbours.
    """

    def __init__(self, model: ModelFiles, device: str = "cpu", dtype: str = "float32") -> None:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.utils import logging as diffusers_logging
        from transformers import AutoTokenizer, CLIPTextModel
        from transformers.utils import logging as transformers_logging

        for logs in (diffusers_logging, transformers_logging):
            logs.set_verbosity_error()
            logs.disable_progress_bar()
        self.files = model
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}

        def load(kind: Any, part: str) -> Any:  # noqa: ANN401 - three unrelated model classes
            name = {"dtype" if kind is CLIPTextModel else "torch_dtype": self.dtype}
            loaded = kind.from_pretrained(str(model.path / part), **options, **name)
            return loaded.to(self.device).eval().requires_grad_(False)

        self.unet = load(UNet2DConditionModel, "unet")
        self.vae = load(AutoencoderKL, "vae")
        self._text_encoder = load(CLIPTextModel, "text_encoder")
        self._tokenizer = AutoTokenizer.from_pretrained(
            str(model.path / "tokenizer"), local_files_only=True
        )
        self._texts: dict[str, torch.Tensor] = {}

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Latent channels, and latents along one side at the model's own resolution."""
        side = self.files.resolution // self.files.scale_factor
        return int(self.files.configs["unet"]["in_channels"]), side

    def text(self, prompt: str) -> torch.Tensor:
        """The text encoder's last hidden state of one prompt, (tokens, D); kept for reuse."""
        import torch

        if prompt not in self._texts:
            if len(self._texts) >= 4096:
                self._texts.clear()
            tokens = self._tokenizer(
                prompt,
                padding="max_length",
                max_length=self._tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            with torch.inference_mode():
                self._texts[prompt] = self._text_encoder(tokens.to(self.device))[0][0]
        return self._texts[prompt]

    def tokens(self, prompt: str) -> list[int]:
        """The numbers of a prompt's tokens at their positions in `text`, begin and end included."""
        read: list[int] = self._tokenizer(
            prompt, max_length=self._tokenizer.model_max_length, truncation=True
        ).input_ids
        return read

    def words(self, prompt: str) -> list[tuple[str, tuple[int, ...]]]:
        """The words of a prompt in order, each with the positions of its tokens in `text`.

        Without punctuation, and without what comes after the last token that the encoder reads.
        """
        spans = self._tokenizer(
            prompt,
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_offsets_mapping=True,
        ).offset_mapping
        found = []
        for word in re.finditer(r"[\w'’-]*\w", prompt):
            inside = [n for n, (start, end) in enumerate(spans) if word.start() <= start < end]
            own = tuple(n for n in inside if spans[n][1] <= word.end())
            found += [(word[0], own)] if own else []
        return found

    def encode(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as latents, float32 (C, h, w): the posterior's mean, scaled."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(image)).to(self.device)
        return self.latents(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1.0)[0]

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 as latents, float32 (B, C, h, w), without gradients."""
        import torch

        with torch.inference_mode():
            mean = self.vae.encode(pixels.to(self.dtype)).latent_dist.mean
        latents: torch.Tensor = mean.float() * self.vae.config.scaling_factor
        return latents

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) as pictures, float32 (B, 3, H, W) in about -1..1, with gradients."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.dtype)
        decoded: torch.Tensor = self.vae.decode(scaled).sample
        return decoded.float()

    def decode(self, latents: torch.Tensor) -> Image.Image:
        """Latents (C, h, w) as an RGB image. Raises `FloatingPointError` if they are not finite."""
        return self.decoding(latents).image()

    def decoding(self, latents: torch.Tensor) -> Decoding:
        """Begins to decode latents (C, h, w); no device is waited for before the image is taken."""
        import torch

        scaled = (latents / self.vae.config.scaling_factor)[None].to(self.dtype)
        with torch.inference_mode():
            pixels = self.vae.decode(scaled).sample[0].float()
        finite = torch.isfinite(pixels).all()
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        if self.device.type != "cuda":  # no other one says when a copy has arrived
            return Decoding(levels.cpu(), finite.cpu())
        arrived = torch.cuda.Event()
        levels, finite = (part.to("cpu", non_blocking=True) for part in (levels, finite))
        arrived.record()
        return Decoding(levels, finite, arrived)


@dataclass(frozen=True)
class Decoding:
    """A decoded picture on its way from the device.

    Attributes:
        levels, finite: uint8 (H, W, 3), and whether all its values were finite.
        arrived: on CUDA, until when neither holds anything.
    """

    levels: torch.Tensor
    finite: torch.Tensor
    arrived: torch.cuda.Event | None = None

    def image(self) -> Image.Image:
        """Waits for the picture. Raises `FloatingPointError` if it is not finite."""
        from PIL import Image

        if self.arrived is not None:
            self.arrived.synchronize()
        if not bool(self.finite):
            raise FloatingPointError("the decoded picture holds values that are not finite")
        return Image.fromarray(self.levels.numpy())
