"""Networks beside the model, those of metrics and of guided methods, and where they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pnp_batch.errors import InvalidModel
from pnp_batch.models import DEMO, from_hub

CLIP, VIT = "openai/clip-vit-base-patch32", "facebook/dino-vitb8"
# The weights that torchvision publishes, as torch.hub has or gets them; the name carries a digest.
SQUEEZENET = "squeezenet1_1"
SQUEEZENET_URL = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
WANTED = ["*.json", "*.txt", "model*.safetensors", "pytorch_model.bin"]


@dataclass(frozen=True)
class Network:
    """A network that lies on this machine.

    Attributes:
        name: as it was asked for.
        path: its folder in transformers format, or the file of its weights.
        digest: of its configuration and weights.
    """

    name: str
    path: Path
    digest: str

    def config(self, file: str) -> dict[str, Any]:
        """One of its JSON files; empty if it has none of that name."""
        path = self.path / file
        return dict(json.loads(path.read_text())) if path.is_file() else {}


def find(name: str) -> Network:
    """Finds a network: `demo` (the embedded CLIP), a local directory, or a hub id.

    Raises:
        InvalidModel: it is not there, or has no configuration or weights.
    """
    if name == DEMO:
        path = Path(str(files("pnp_batch") / "demo" / "model" / "clip"))
    elif Path(name).expanduser().is_dir():
        path = Path(name).expanduser()
    else:
        path = from_hub(name, None, WANTED)
    weights = [*sorted(path.glob("model*.safetensors")), *path.glob("pytorch_model.bin")]
    if not weights or not (path / "config.json").is_file():
        raise InvalidModel(
            f"{name}: no config.json with weights in {path}", "give a folder in transformers format"
        )
    total = hashlib.sha256()
    for file in (path / "config.json", *weights):
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return Network(name, path, total.hexdigest()[:16])


def load(kind: Any, network: Network) -> Any:  # noqa: ANN401 - transformers has no types here
    """A network's model of a class of transformers, in float32 and for inference only.

    Raises:
        InvalidModel: its folder holds another kind of model.
    """
    import torch

    hint = "name a folder or hub id of the right kind, in transformers format"
    try:
        model, info = kind.from_pretrained(
            str(network.path), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidModel(
            f"{network.name}: no {kind.__name__} could be loaded: {error}", hint
        ) from error
    # Weights that are missing would be random; the pooler of a ViT is not used.
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InvalidModel(f"{network.name}: no {kind.__name__}, it lacks {missing[0]}", hint)
    return model.eval().requires_grad_(False)


def tokenizer(network: Network) -> Any:  # noqa: ANN401 - transformers has no types here
    """The tokenizer of a CLIP. Raises `InvalidModel` if its folder has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(network.path))
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"{network.name}: no tokenizer", "name a folder that has the tokenizer of its CLIP"
        ) from error


def find_weights(name: str) -> Network:
    """Finds SqueezeNet's weights for LPIPS: `squeezenet1_1`, or a file of this machine.

    Raises:
        InvalidModel: they are not there and cannot be downloaded.
    """
    path = Path(name).expanduser()
    if name == SQUEEZENET:
        path = _downloaded()
    if not path.is_file():
        raise InvalidModel(f"--lpips {name}: no such file", f"give a file, or {SQUEEZENET}")
    with path.open("rb") as opened:
        return Network(name, path, hashlib.file_digest(opened, "sha256").hexdigest()[:16])


def _downloaded() -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / SQUEEZENET_URL.rpartition("/")[2]
    if not path.is_file():
        try:
            if HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set")
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(SQUEEZENET_URL, str(path), "b8a52dc0", progress=False)
        except (OSError, RuntimeError) as error:
            raise InvalidModel(
                f"--lpips {SQUEEZENET}: cannot be downloaded: {error}",
                f"get {SQUEEZENET_URL} elsewhere and name the file with --lpips",
            ) from error
    return path
