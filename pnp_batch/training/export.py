"""Stage 4: everything in half precision as one Stable Diffusion folder, with CLIP beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from pnp_batch.training.unet import new_scheduler, new_unet
from pnp_batch.training.vae import load_vae

LIMIT_BYTES = 25_000_000
PRIVATE_KEYS = ("_name_or_path", "transformers_version")


def averaged_unet(work: Path) -> UNet2DConditionModel:
    """The averaged weights of the last checkpoint, of a finished training or a running one."""
    unet = new_unet()
    checkpoint = work / "unet" / "checkpoint.pt"
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint}: nothing to export yet; run the stage 'unet' first")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    unet.load_state_dict(state["average"])
    return unet


def assemble(work: Path) -> StableDiffusionPipeline:
    """The pipeline of the trained parts, in half precision."""
    clip = work / "clip"
    pipeline = StableDiffusionPipeline(
        vae=load_vae(work / "vae" / "model"),
        text_encoder=CLIPTextModel.from_pretrained(clip / "model"),
        tokenizer=CLIPTokenizer.from_pretrained(clip / "tokenizer"),
        unet=averaged_unet(work),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.to(torch.float16)


def image_processor() -> CLIPImageProcessor:
    """How the vision tower wants pictures: 64 x 64 pixels from -1 to 1."""
    side = {"height": 64, "width": 64}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=side, image_mean=half, image_std=half
    )


def scrub(directory: Path) -> None:
    """Takes what is about the training machine out of every JSON file.

    Weights are stored in half precision but compute in single unless asked otherwise: transformers
    would follow the stored ``dtype``, diffusers would not, and a pipeline of both could not run.
    """
    for path in directory.rglob("*.json"):
        content = json.loads(path.read_text())
        kept = {k: v for k, v in content.items() if k not in PRIVATE_KEYS}
        for part in (kept, *kept.values()):
            if isinstance(part, dict) and "dtype" in part:
                part["dtype"] = "float32"
        path.write_text(json.dumps(kept, indent=2) + "\n")


def weight_bytes(directory: Path) -> int:
    """The size of all safetensors under ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors"))


def export(work: Path, out: Path) -> None:
    """Writes the folder ``out`` through one beside it; other files in ``out`` stay.

    Raises ValueError when the weights exceed 25 MB, before anything in ``out`` changes.
    """
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    assemble(work).save_pretrained(fresh, safe_serialization=True)
    clip = CLIPModel.from_pretrained(work / "clip" / "model").half()
    clip.save_pretrained(fresh / "clip", safe_serialization=True)
    CLIPTokenizer.from_pretrained(work / "clip" / "tokenizer").save_pretrained(fresh / "clip")
    image_processor().save_pretrained(fresh / "clip")
    scrub(fresh)
    if weight_bytes(fresh) > LIMIT_BYTES:
        raise ValueError(
            f"{fresh}: {weight_bytes(fresh):,} bytes of weights, at most {LIMIT_BYTES:,}"
        )
    swap(fresh, out)


def swap(fresh: Path, out: Path) -> None:
    """Moves every file of ``fresh`` over its place in ``out``, each in one step."""
    for source in sorted(path for path in fresh.rglob("*") if path.is_file()):
        target = out / source.relative_to(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.chmod(0o644)
        source.replace(target)
    shutil.rmtree(fresh)
