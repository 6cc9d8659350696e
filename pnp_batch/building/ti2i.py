"""The TI2I benchmarks: the YAML files that their authors publish in, a row for each pair out.

Wild-TI2I, ImageNet-R-TI2I and Generated-ImageNet-R-TI2I of Tumanyan et al., CVPR 2023, whose
project page is pnp-diffusion.github.io. A file is a list of entries: those of real images have
`init_img`, those of generated ones `source_prompt`, `seed`, `scale` and `ddim_steps`; all have
`target_prompts`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import yaml

from pnp_batch.building.names import Names
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt
from pnp_batch.building.target import Built, Target
from pnp_batch.building.texts import read_text, text_of

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("image", pa.string()),
        ("prompt", pa.string()),
        ("source_prompt", pa.string()),
        ("seed", pa.int64()),
        ("benchmark", pa.string()),
        ("prompt_family", pa.string()),
        ("class", pa.string()),
        ("source_scale", pa.float64()),
        ("source_steps", pa.int64()),
    ]
)
# What the published files are called.
BENCHMARKS = {
    "wild-ti2i-real": "Wild-TI2I",
    "wild-ti2i-fake": "Wild-TI2I",
    "imnetr-ti2i": "ImageNet-R-TI2I",
    "imnetr-fake-ti2i": "Generated-ImageNet-R-TI2I",
}
# One entry of the published ImageNet-R-TI2I has neither an image nor a seed.
SEED = 0
_FAMILY = re.compile(r"(?:an?|the)\s+((?:\S+\s+){0,2}?\S+)\s+of\s", re.IGNORECASE)
_CLASS = re.compile(r"/?imagenet-?r[^/]*/([^/]+)/[^/]+", re.IGNORECASE)


def from_ti2i(file: str, folder: str | None, target: Target, benchmark: str | None = None) -> Built:
    """A row for each entry and target prompt.

    Args:
        file: the YAML file.
        folder: where its images lie; its own folder if None. Of a path in the file, the first
            folders may be missing there, and its case may differ.
        target: the manifest.
        benchmark: the name in the column `benchmark`; by the file's name if None.

    Raises:
        NotBuilt: the file is not of this form, or an image is missing.
    """
    entries = _entries(file)
    stem = posixpath.splitext(posixpath.basename(file))[0]
    own = {"benchmark": benchmark or BENCHMARKS.get(stem.lower(), stem)}
    needs_images = any(entry.get("init_img") for _, entry in entries)
    pictures = Pictures(folder or posixpath.dirname(file) or ".", target.base)
    files = {
        where: pictures.find(entry["init_img"], where, anywhere=True)
        for where, entry in entries
        if entry.get("init_img")
    }
    names = Names(files.values())
    notes: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, (where, entry) in enumerate(entries, 1):
            prompts = _prompts(entry, where)
            row: dict[str, Any] = {**own, "source_prompt": text_of(entry, "source_prompt", where)}
            if where in files:
                name = names.row(files[where])
                row |= {"image": pictures.reference(files[where]), "class": _class(entry)}
            else:
                name = Names(()).of(f"{number:03d}-{row['source_prompt']}")
                row |= _generation(entry, where, row["source_prompt"])
                if "seed" not in entry:
                    told = "has no seed and no image" if needs_images else "has no seed"
                    notes.append(
                        f"{where} {told}: its guidance image is generated with seed {SEED}"
                    )
            for k, prompt in enumerate(prompts):
                yield {**row, "row_id": f"{name}-{k}", "prompt": prompt, **_family(prompt)}

    return target.write(SCHEMA, rows(), pictures if files else None, notes)


def _entries(file: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The entries, each with what messages call it."""
    text = read_text(file)
    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        told = getattr(error, "problem", None) or type(error).__name__
        raise NotBuilt(f"{file}{place}: not valid YAML: {told}", "check the file") from error
    if not isinstance(read, list) or not read:
        raise NotBuilt(
            f"{file}: not a TI2I benchmark", "expected a list of entries with target_prompts"
        )
    found: list[tuple[str, Mapping[str, Any]]] = []
    for number, entry in enumerate(read, 1):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict):
            raise NotBuilt(
                f"{where}: is {type(entry).__name__}, not a mapping",
                "expected init_img or source_prompt, and target_prompts",
            )
        found.append((where, entry))
    return found


def _prompts(entry: Mapping[str, Any], where: str) -> list[str]:
    told = entry.get("target_prompts")
    if not isinstance(told, list) or not told:
        raise NotBuilt(f"{where}: no target_prompts", "expected a list of texts")
    prompts = [text_of({"target_prompts": text}, "target_prompts", where) for text in told]
    if not all(prompts):
        raise NotBuilt(f"{where}: an empty target prompt", "expected a list of texts")
    return [text for text in prompts if text]


def _generation(
    entry: Mapping[str, Any], where: str, source_prompt: str | None
) -> dict[str, int | float | None]:
    """What the authors generated the guidance image with."""
    if source_prompt is None:
        raise NotBuilt(
            f"{where}: neither init_img nor source_prompt", "expected the image, or its prompt"
        )
    values = {}
    for key, kind in (("seed", int), ("scale", (int, float)), ("ddim_steps", int)):
        value = entry.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise NotBuilt(f"{where}: {key} is {type(value).__name__}", "expected a number")
        if value is not None and not 0 <= value < 2**63:
            raise NotBuilt(f"{where}: {key} is out of range", "expected 0 or more, below 2^63")
        values[key] = value
    seed = SEED if values["seed"] is None else values["seed"]
    return {"seed": seed, "source_scale": values["scale"], "source_steps": values["ddim_steps"]}


def _class(entry: Mapping[str, Any]) -> str | None:
    """The class of an image of ImageNet-R-TI2I: `owl` of `/ImageNetR-TI2I/owl/sketch_8.jpg`."""
    found = _CLASS.fullmatch(entry["init_img"])
    return found[1] if found else None


def _family(prompt: str) -> dict[str, str | None]:
    """The rendition a prompt begins with: `oil painting` of `an oil painting of a horse`."""
    found = _FAMILY.match(prompt)
    return {"prompt_family": found[1].lower() if found else None}
