"""Whether a folder is a whole Stable Diffusion 1.x or 2.x in diffusers' format.

In: a folder. Out: the parsed configurations of its parts, or an `InvalidModel` that names the file
and says what is wrong, in milliseconds: only headers of the weights are read, and nothing is run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pnp_batch.errors import InvalidModel
from pnp_batch.flops import LAYOUT

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
UNET = "UNet2DConditionModel"
PREDICTIONS = ("epsilon", "v_prediction")
LAYOUT_HINT = "use a Stable Diffusion 1.x or 2.x text-to-image model"


def checked_configs(path: Path, name: str) -> dict[str, dict[str, Any]]:
    """The configuration of each part. Raises `InvalidModel` unless all is there and fits."""
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
    _check_layout(configs, name)
    for part in WEIGHTS:
        shapes: dict[str, Any] = {}
        for file in weight_files(path, part):
            shapes |= _checked_shapes(file, name)
        _check_weights(part, configs[part], shapes, name)
    return configs


def _check_layout(configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Refuses other families than Stable Diffusion 1.x and 2.x, and parts of different models."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    scheduler = configs["scheduler"].get("prediction_type", "epsilon")
    up_blocks, layers = list(LAYOUT["up_block_types"]), LAYOUT["layers_per_block"]
    wanted = (
        ("unet", "_class_name", unet.get("_class_name", UNET), UNET),
        # The decoder whose layers Plug-and-Play numbers: four blocks of three.
        ("unet", "up_block_types", unet.get("up_block_types", up_blocks), up_blocks),
        ("unet", "layers_per_block", unet.get("layers_per_block", layers), layers),
        ("unet", "addition_embed_type", unet.get("addition_embed_type"), None),
        ("unet", "in_channels", unet["in_channels"], unet.get("out_channels", 4)),
        ("vae", "latent_channels", vae.get("latent_channels", 4), unet["in_channels"]),
        ("text_encoder", "hidden_size", text.get("hidden_size"), unet.get("cross_attention_dim")),
    )
    for part, key, found, right in wanted:
        if found != right:
            raise InvalidModel(
                f"model {name!r}: {CONFIGS[part]} has {key} {found!r} where {right!r} is needed",
                LAYOUT_HINT,
            )
    if scheduler not in PREDICTIONS:
        raise InvalidModel(
            f"model {name!r}: {CONFIGS['scheduler']} predicts {scheduler!r}, not one of "
            + ", ".join(PREDICTIONS),
            LAYOUT_HINT,
        )


def _check_weights(
    part: str, config: Mapping[str, Any], shapes: Mapping[str, Any], name: str
) -> None:
    """Refuses weights of another model than the configuration beside them."""
    first = {"unet": "conv_in.weight", "vae": "encoder.conv_in.weight"}.get(part)
    if first is None:
        return
    right = [config["block_out_channels"][0], config.get("in_channels", 3), 3, 3]
    if shapes.get(first) != right:
        raise InvalidModel(
            f"model {name!r}: the weights in {part}/ do not belong to {CONFIGS[part]}: {first} is "
            f"{shapes.get(first)}, not {right}",
            "download or export both again",
        )


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


def weight_files(path: Path, part: str) -> list[Path]:
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


def _checked_shapes(file: Path, name: str) -> dict[str, Any]:
    """The shapes of a file's tensors, if its size is what its own header promises."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size, LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        tensors = {k: tensor for k, tensor in header.items() if k != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
        return {k: tensor["shape"] for k, tensor in tensors.items()}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"model {name!r}: {file.parent.name}/{file.name} is no whole safetensors file: {error}",
            "download or export the file again",
        ) from error
