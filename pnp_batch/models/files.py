"""Finding a model's files on this machine's disk, and their digest."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pnp_batch.errors import InvalidModel
from pnp_batch.models.check import CONFIGS, WEIGHTS, checked_configs, weight_files

DEMO = "demo"
# What of a hub model is downloaded.
WANTED = (
    *("model_index.json", *CONFIGS.values(), "tokenizer/*"),
    *(f"{part}/{stem}*.safetensors*" for part, stem in WEIGHTS.items()),
)


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
        return sum(f.stat().st_size for part in WEIGHTS for f in weight_files(self.path, part))

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
        path = from_hub(name, revision, WANTED)
    else:
        raise InvalidModel(
            f"model {name!r}: no such directory", "give a directory, a hub id (owner/name), or demo"
        )
    return ModelFiles(name, path, checked_configs(path, name))


def is_directory(name: str) -> bool:
    """True when a model's name is a directory of this machine; `demo` never is."""
    return name != DEMO and Path(name).expanduser().is_dir()


def from_hub(name: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """The local folder of a hub model's files of these patterns, downloaded where missing.

    Raises:
        InvalidModel: it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(wanted))
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


def _digest(path: Path) -> str:
    parts = [path / file for file in CONFIGS.values()]
    parts += [file for part in WEIGHTS for file in weight_files(path, part)]
    parts += [file for file in sorted((path / "tokenizer").rglob("*")) if file.is_file()]
    total = hashlib.sha256()
    for file in parts:
        with file.open("rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()}\0{own}\n".encode())
    return total.hexdigest()
