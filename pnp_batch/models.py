"""Models: a name in, checked files with a digest out; and, on a worker, the loaded model.

Finding, checking and digesting need neither torch nor the network for `demo` and for local
directories, so that a wrong model is refused before any worker starts.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnp_batch.errors import InvalidModel

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEMO = "demo"
# What a translation loads, and so what the digest covers; a safety checker or a README is not it.
CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
TOKENIZERS = ("tokenizer/tokenizer.json", "tokenizer/vocab.json")
# Settings that say which pictures a model takes.
SIZES = (
    ("unet", "sample_size"),
    ("unet", "in_channels"),
    ("unet", "block_out_channels"),
    ("vae", "block_out_channels"),
)
LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine's disk, checked: `configs` holds the parsed JSON of each part."""

    name: str
    path: Path
    configs: Mapping[str, Mapping[str, Any]]

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and bytes of everything a translation loads; read once."""
        return _digest(self.path)

    def check_digest(self) -> None:
        """Raises `InvalidModel` if the files on this machine are not those that were digested."""
        if _digest(self.path) != self.digest:
            raise InvalidModel(
                f"model {self.name!r}: the files in {self.path} on {platform.node()} are not those "
                "that the run began with",
                "give every machine the same files, then run the same command again",
            )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(f.stat().st_size for part in WEIGHTS for f in _weights(self.path, part))

    @property
    def scale_factor(self) -> int:
        """Pixels of an image for each latent, along one side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def resolution(self) -> int:
        """The side of the images that the model was made for, in pixels."""
        return int(self.configs["unet"]["sample_size"]) * self.scale_factor

    @property
    def multiple(self) -> int:
        """What a resolution must be a multiple of: each UNet level halves the latents."""
        return int(self.scale_factor * 2 ** (len(self.configs["unet"]["block_out_channels"]) - 1))

    def working_resolution(self, asked: int | None) -> int:
        """The working resolution in pixels. Raises `InvalidModel` if the UNet cannot take it."""
        side = asked or self.resolution
        if side % self.multiple:
            nearest = max(1, round(side / self.multiple)) * self.multiple
            raise InvalidModel(
                f"resolution {side} is no multiple of {self.multiple}, which {self.name} needs",
                f"use --resolution {nearest}",
            )
        return side


def find(name: str, revision: str | None = None) -> ModelFiles:
    """Finds and checks a model.

    Args:
        name: `demo`, a local directory in diffusers Stable Diffusion format, or a hub id.
        revision: of a hub model.

    Raises:
        InvalidModel: not found, incomplete or truncated; the message names the file.
    """
    if name == DEMO:
        path = Path(str(files("pnp_batch") / "demo" / "model"))
    elif is_directory(name):
        path = Path(name).expanduser().absolute()
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = _from_hub(name, revision)
    else:
        raise InvalidModel(
            f"model {name!r}: no such directory", "give a directory, a hub id (owner/name), or demo"
        )
    return ModelFiles(name, path, _configs(path, name))


def is_directory(name: str) -> bool:
    """True when a model's name is a directory of this machine; `demo` never is."""
    return name != DEMO and Path(name).expanduser().is_dir()


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["model_index.json", *CONFIGS.values(), "tokenizer/*"]
    wanted += [f"{part}/{stem}*.safetensors*" for part, stem in WEIGHTS.items()]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=wanted)
    except (
        OSError,
        ValueError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    ) as e:
        reason = str(e).strip().partition("\n")[0]
        raise InvalidModel(
            f"model {name!r} is neither a local directory nor can it be had from the hub: {reason}",
            "check the name and the network, or give a local directory",
        ) from e
    return Path(found)


def _configs(path: Path, name: str) -> dict[str, dict[str, Any]]:
    index = _json(path / "model_index.json", name)
    if "unet" not in index or "vae" not in index:
        raise InvalidModel(
            f"model {name!r}: model_index.json names no unet and vae",
            "use a model in diffusers Stable Diffusion format",
        )
    configs = {part: _json(path / file, name) for part, file in CONFIGS.items()}
    for part, key in SIZES:
        if configs[part].get(key) is None:
            raise InvalidModel(
                f"model {name!r}: {CONFIGS[part]} has no {key}",
                "replace the file by a complete one",
            )
    words = [file for file in TOKENIZERS if (path / file).is_file()]
    if not words:
        raise InvalidModel(
            f"model {name!r}: {' or '.join(TOKENIZERS)} is missing", "complete the directory"
        )
    for word_file in words:
        _json(path / word_file, name)
    for part in WEIGHTS:
        for file in _weights(path, part):
            _check_safetensors(file, name)
    return configs


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "is missing" if not file.exists() else "is not valid JSON"
        raise InvalidModel(
            f"model {name!r}: {file.parent.name}/{file.name} {what}",
            "use a complete directory in diffusers Stable Diffusion format",
        ) from error
    if not isinstance(loaded, dict):
        raise InvalidModel(f"model {name!r}: {file.name} is not a JSON object", "replace the file")
    return loaded


def _weights(path: Path, part: str) -> list[Path]:
    """The safetensors files of one part: a whole one, or the shards its index names."""
    whole = path / part / f"{WEIGHTS[part]}.safetensors"
    if whole.is_file():
        return [whole]
    index = path / part / f"{WEIGHTS[part]}.safetensors.index.json"
    if not index.is_file():
        raise InvalidModel(
            f"model {path.name!r}: {part}/{whole.name} is missing",
            "weights must be safetensors; convert other formats first",
        )
    shards = _json(index, path.name).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InvalidModel(
            f"model {path.name!r}: {part}/{index.name} names no files", "complete the directory"
        )
    return [path / part / name for name in sorted({Path(str(s)).name for s in shards.values()})]


def _check_safetensors(file: Path, name: str) -> None:
    """Compares a file's size with what its own header promises: a cut download is found at once."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size, LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        end = max(
            (t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"), default=0
        )
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"model {name!r}: {file.parent.name}/{file.name} is no whole safetensors file: {error}",
            "download or export the file again",
        ) from error


def _digest(path: Path) -> str:
    parts = [path / file for file in CONFIGS.values()]
    parts += [file for part in WEIGHTS for file in _weights(path, part)]
    parts += [file for file in sorted((path / "tokenizer").rglob("*")) if file.is_file()]
    total = hashlib.sha256()
    for file in parts:
        with file.open("rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()}\0{own}\n".encode())
    return total.hexdigest()


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

    def encode(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as latents, float32 (C, h, w): the posterior's mean, scaled."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(image)).to(self.device)
        pixels = (pixels.permute(2, 0, 1)[None].float() / 127.5 - 1.0).to(self.dtype)
        with torch.inference_mode():
            mean = self.vae.encode(pixels).latent_dist.mean
        latents: torch.Tensor = mean[0].float() * self.vae.config.scaling_factor
        return latents

    def decode(self, latents: torch.Tensor) -> Image.Image:
        """Latents (C, h, w) as an RGB image. Raises `FloatingPointError` if they are not finite."""
        import torch
        from PIL import Image

        scaled = (latents / self.vae.config.scaling_factor)[None].to(self.dtype)
        with torch.inference_mode():
            pixels = self.vae.decode(scaled).sample[0].float()
        if not bool(torch.isfinite(pixels).all()):
            raise FloatingPointError("the decoded picture holds values that are not finite")
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
