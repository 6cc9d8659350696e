"""`Translator`: the library's way to translate pictures in this process, without Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from PIL import Image

from pnp_batch import methods, source
from pnp_batch import parameters as settled
from pnp_batch.batches import DEFAULT_BATCH_SIZE, PLACE, RECIPE, Place, with_places
from pnp_batch.config import RunConfig
from pnp_batch.engine import Engine, Outcome
from pnp_batch.errors import InvalidConfig, InvalidRow, ModelError, did_you_mean
from pnp_batch.identity import derived_seed
from pnp_batch.latents import LatentCache
from pnp_batch.models import DEMO, StableDiffusion, find
from pnp_batch.origins import Row
from pnp_batch.parameters import OPTIONS
from pnp_batch.presets import PRESET, with_preset
from pnp_batch.storage import Storage

PARAMETERS = (
    "method",
    "steps",
    "inversion_steps",
    "deep_every",
    "resolution",
    "fit",
    "batch_size",
    "seed",
    "set",
    *OPTIONS,
)
T = TypeVar("T")


class Translator:
    """A loaded model that translates pictures."""

    def __init__(self, model: StableDiffusion, cache: str | None = None) -> None:
        self.model = model
        self._cache = LatentCache(Storage(cache)) if cache else None

    @classmethod
    def load(
        cls,
        model: str = DEMO,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
        cache: str | None = None,
    ) -> Translator:
        """Loads a model: `demo`, a diffusers directory, or a hub id.

        `cache` is the folder or URI of a latent cache, as of `pnp-batch run --cache`: a picture
        that is translated again is not inverted again.

        Raises:
            InvalidModel: not found, incomplete, or neither Stable Diffusion 1.x nor 2.x.
        """
        return cls(StableDiffusion(find(model, revision), device, dtype), cache)

    def translate(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str | Sequence[str]],
        *,
        source_prompts: Sequence[str] = (),
        **parameters: Any,
    ) -> list[Image.Image | list[Image.Image]]:
        """Translates B pictures.

        Args:
            images: B PIL images of any size and mode.
            prompts: B entries, each a text or a list of texts.
            source_prompts: what each of the pictures shows; they are inverted with it, and some
                methods need it. None for empty ones.
            **parameters: `preset` and those of `PARAMETERS`, with the meaning, limits and defaults
                of the options of `pnp-batch run`. The noise of a picture comes from `seed` and its
                pixels.

        Returns:
            B entries: a PIL image for a text, a list of PIL images for a list. Each is RGB and
            has the side of the working resolution.

        Raises:
            InvalidConfig: an unknown parameter, or a value out of range.
            RowError: of the kind that `pnp-batch run` would have recorded for the row.
        """
        made = {
            name: outcome.image
            for name, outcome in self._outcomes(images, prompts, source_prompts, parameters).items()
            if outcome.image is not None
        }
        return _as_asked(made, prompts)

    def masks(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str | Sequence[str]],
        *,
        source_prompts: Sequence[str] = (),
        **parameters: Any,
    ) -> list[dict[str, Image.Image] | list[dict[str, Image.Image]]]:
        """The masks that a translation reads on its way, where its method reads some.

        Args:
            images, prompts, source_prompts, **parameters: as of `translate`; the method is
                `pnp-mask` by default.

        Returns:
            As `translate`, but each picture is a dict: `source mask` and `target mask`, the subject
            in the guidance image and in the translation, averaged over the steps that inject, as
            grey images of the working resolution. Empty where no step injects.
        """
        asked = {"method": "pnp-mask", **parameters}
        made = self._outcomes(images, prompts, source_prompts, asked)
        return _as_asked({name: outcome.pictures() for name, outcome in made.items()}, prompts)

    def _outcomes(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str | Sequence[str]],
        source_prompts: Sequence[str],
        parameters: dict[str, Any],
    ) -> dict[str, Outcome]:
        """What became of each row, by its name."""
        engine, rows = self.prepared(images, prompts, _config(parameters), source_prompts)
        made = {outcome.row.row_id: outcome for outcome in engine.translate(rows)}
        for outcome in made.values():
            if outcome.image is None:
                raise ModelError("no picture was made") if outcome.error is None else outcome.error
        return made

    def prepared(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str | Sequence[str]],
        config: RunConfig,
        source_prompts: Sequence[str] = (),
    ) -> tuple[Engine, list[Row]]:
        """The engine that `translate` uses, and the rows that it gives it. Raises as it does."""
        told = source_prompts or [""] * len(images)
        if len(told) != len(images):
            raise InvalidConfig(
                f"{len(images)} images but {len(told)} source prompts", "give one for each image"
            )
        if len(images) != len(prompts):
            raise InvalidConfig(
                f"{len(images)} images but {len(prompts)} prompts", "give one entry for each image"
            )
        engine = Engine(
            self.model,
            sampling=config.sampling,
            resolution=self.model.files.working_resolution(config.resolution),
            cache=self._cache,
        )
        ahead = self.model.device.type == "cuda"
        prepared = [
            source.prepare(source.to_rgb(image), engine.resolution, config.fit) for image in images
        ]
        return engine, _rows(list(zip(prepared, told, strict=True)), prompts, config, ahead=ahead)


def _as_asked(made: Mapping[str, T], prompts: Sequence[str | Sequence[str]]) -> list[T | list[T]]:
    """What was made of each row, in the shape of the prompts."""
    return [
        made[f"{i}"] if isinstance(entry, str) else [made[f"{i}-{k}"] for k in range(len(entry))]
        for i, entry in enumerate(prompts)
    ]


def _config(parameters: dict[str, Any]) -> RunConfig:
    known = (PRESET, *PARAMETERS)
    for name in parameters:
        if name not in known:
            raise InvalidConfig(f"unknown parameter {name!r}", did_you_mean(name, known))
    config = RunConfig(manifest="-", output="-", **with_preset(parameters))
    methods.get(config.method)
    return config


def _rows(
    sources: Sequence[tuple[Image.Image, str]],
    prompts: Sequence[str | Sequence[str]],
    config: RunConfig,
    *,
    ahead: bool,
) -> list[Row]:
    names = [hashlib.sha256(image.tobytes()).hexdigest() for image, _ in sources]
    flat = [
        (index, f"{index}" if isinstance(entry, str) else f"{index}-{k}", text)
        for index, entry in enumerate(prompts)
        for k, text in enumerate([entry] if isinstance(entry, str) else entry)
    ]
    for _, row_id, text in flat:
        if not (text or "").strip():
            raise InvalidRow(f"prompt {row_id} is null or empty; give it a text")
    if not flat:
        return []
    method = methods.get(config.method)
    values = settled.resolved(method, config.parameters)
    recipe = {"method": config.method, "shared": settled.shared(method, values)}
    table = pa.table(
        {
            "guidance": [names[index] + sources[index][1] for index, _, _ in flat],
            **{name: [recipe[name]] * len(flat) for name in RECIPE},
        }
    )
    placed = with_places(table, config.batch_size or DEFAULT_BATCH_SIZE, ahead=ahead)
    places = placed.select(list(PLACE)).to_pylist()
    return [
        Row(
            row_id=row_id,
            guidance=names[index] + sources[index][1],
            pixels=sources[index][0],
            prompt=text,
            method=config.method,
            place=Place(**place),
            negative_prompt=config.negative_prompt,
            source_prompt=sources[index][1],
            seed=derived_seed(config.seed, names[index]),
            guidance_scale=config.guidance_scale,
            parameters=json.loads(recipe["shared"]),
            own=json.loads(settled.own(method, values)),
        )
        for (index, row_id, text), place in zip(flat, places, strict=True)
    ]
