"""The engine: rows of one device in, translated pictures out, with no Ray in sight.

Packs rows into batches of fixed shape, finds or makes each guidance image's trajectory, runs the
method, and turns what goes wrong with a row into that row's outcome.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from PIL import Image

from pnp_batch import methods
from pnp_batch.batches import RECIPE, Shape, pack
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Guidance, Prompts, generate
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import ModelError, OutOfMemory, RowError
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.models import StableDiffusion

# How strongly a generated guidance image follows its source prompt, as published.
SOURCE_GUIDANCE_SCALE = 5.0
REMEMBERED = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One picture to make. `pixels` is the prepared guidance image, None to generate it."""

    row_id: str
    guidance: str
    pixels: Image.Image | None
    prompt: str
    method: str
    shape: Shape
    negative_prompt: str = ""
    source_prompt: str = ""
    seed: int = 0
    guidance_scale: float = 7.5
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> tuple[object, ...]:
        """Rows with another one cannot share a UNet batch."""
        return (self.method, *(self.parameters.get(name) for name in RECIPE[1:]))


@dataclass(frozen=True)
class Outcome:
    """What became of a row: an image or an error. `cached`: its inversion was not computed."""

    row: Row
    image: Image.Image | None = None
    error: RowError | None = None
    latents_key: str | None = None
    cached: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Origin:
    """A guidance image on its way through the method: its trajectory and picture."""

    trajectory: torch.Tensor
    image: Image.Image | None
    key: str | None = None
    cached: bool = False


class Engine:
    """A loaded model that translates rows.

    Args:
        model: the loaded model.
        steps, inversion_steps: of sampling and of inversion.
        resolution: side of the working images; every row's `pixels` has it.
        cache: where trajectories are kept between jobs, or None.
    """

    def __init__(
        self,
        model: StableDiffusion,
        *,
        steps: int,
        inversion_steps: int,
        resolution: int,
        cache: LatentCache | None = None,
    ) -> None:
        self.model = model
        self.unet = UNet(model.unet)
        self.schedule = make_schedule(model.files.configs["scheduler"], steps)
        self.resolution = resolution
        self.inversion = Inversion(
            model=model.files.digest,
            steps=steps,
            inversion_steps=inversion_steps,
            resolution=resolution,
            dtype=str(model.dtype).removeprefix("torch."),
        )
        self.cache = cache
        self._origins: OrderedDict[str, Origin] = OrderedDict()

    def translate(
        self, rows: Sequence[Row], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Outcome]:
        """Translates rows, in batches.

        Args:
            rows: of any images, methods and shapes.
            stopped: asked before each batch; once True, the remaining rows have no outcome.

        Yields:
            One outcome a row, in the order of the batches.
        """
        for images, shape in pack(rows):
            if stopped():
                return
            yield from self._fitting(images, shape)

    def _fitting(self, images: list[list[Row]], shape: Shape) -> Iterator[Outcome]:
        """Runs a batch; when memory runs out, its halves, down to single rows."""
        begun = time.perf_counter()
        rows = [row for own in images for row in own]
        try:
            outcomes = list(self._batch(images, shape))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        else:
            each = (time.perf_counter() - begun) / len(rows)
            yield from (replace(outcome, seconds=each) for outcome in outcomes)
            return
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            if shape.rows > 1:
                yield from self._fitting(images, Shape(1, 1))
                return
            what = f"the device has too little memory for one row at {self.resolution} px"
            yield Outcome(rows[0], error=OutOfMemory(f"{what}; use a smaller --resolution"))
            return
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            units: dict[str, list[Row]] = {}
            for row in half:
                units.setdefault(row.guidance, []).append(row)
            smaller = Shape(len(units), max(map(len, units.values())))
            yield from self._fitting(list(units.values()), smaller)

    def _batch(self, images: list[list[Row]], shape: Shape) -> Iterator[Outcome]:
        """Translates one batch: at most `shape.images` images, `shape.share` rows of each."""
        method = methods.get(images[0][0].method)
        origins = self._find([own[0] for own in images], shape, method)
        rows = [row for own in images for row in own]
        owner = [index for index, own in enumerate(images) for _ in own]
        latents = None
        if method.uses_model:
            latents = method.translate(
                methods.Batch(
                    self.unet,
                    self.schedule,
                    self._guidance(images, origins, owner, shape),
                    self._prompts(_padded(rows, shape.rows)),
                    rows[0].parameters,
                )
            )
        for index, row in enumerate(rows):
            origin = origins[owner[index]]
            done = Outcome(row, latents_key=origin.key, cached=origin.cached)
            image = origin.image if latents is None else self._decode(latents[index])
            if image is None:
                what = f"{row.method} gave values that are not finite"
                yield replace(done, error=ModelError(f"{what}; try another dtype or guidance"))
            else:
                yield replace(done, image=image)

    def _guidance(
        self, images: list[list[Row]], origins: list[Origin], owner: list[int], shape: Shape
    ) -> Guidance:
        full = _padded(origins, shape.images)
        texts = [self.model.text(own[0].source_prompt) for own in images]
        return Guidance(
            trajectory=torch.stack([o.trajectory.to(self.model.device) for o in full], dim=1),
            text=torch.stack(_padded(texts, shape.images)),
            owner=torch.tensor(_padded(owner, shape.rows), device=self.model.device),
        )

    def _prompts(self, rows: Sequence[Row]) -> Prompts:
        scale = torch.tensor([row.guidance_scale for row in rows], device=self.model.device)
        return Prompts(
            target=torch.stack([self.model.text(row.prompt) for row in rows]),
            negative=torch.stack([self.model.text(row.negative_prompt) for row in rows]),
            scale=scale,
        )

    def _find(self, rows: list[Row], shape: Shape, method: methods.Method) -> list[Origin]:
        """The origin of each image: remembered, cached, or made now in one batch."""
        found: dict[str, Origin] = {}
        invert_now, generate_now = [], []
        for row in rows:
            if row.pixels is not None and not method.uses_model:
                found[row.guidance] = Origin(torch.empty(0), row.pixels)
            elif row.guidance in self._origins:
                self._origins.move_to_end(row.guidance)
                found[row.guidance] = self._origins[row.guidance]
            elif row.pixels is None:
                generate_now.append(row)
            elif (cached := self._cached(row)) is not None:
                found[row.guidance] = self._remember(row, cached)
            else:
                invert_now.append(row)
        for row, origin in (*self._invert(invert_now, shape), *self._generate(generate_now, shape)):
            found[row.guidance] = self._remember(row, origin)
        return [found[row.guidance] for row in rows]

    def _remember(self, row: Row, origin: Origin) -> Origin:
        # Rows of the image that come later find it here, and find it in the cache of their job.
        self._origins[row.guidance] = Origin(origin.trajectory, origin.image, origin.key, True)
        while len(self._origins) > REMEMBERED:
            self._origins.popitem(last=False)
        return origin

    def key(self, row: Row) -> str:
        """The latent cache's key of a row's inversion."""
        assert row.pixels is not None
        return self.inversion.key(row.pixels.tobytes(), row.source_prompt)

    def _cached(self, row: Row) -> Origin | None:
        key = self.key(row)
        stored = self.cache.get(key) if self.cache else None
        if stored is None or stored.shape[0] != self.schedule.steps:
            return None
        return Origin(torch.from_numpy(stored).float(), row.pixels, key, cached=True)

    def _invert(self, rows: list[Row], shape: Shape) -> Iterable[tuple[Row, Origin]]:
        if not rows:
            return
        encoded = [self.model.encode(row.pixels) for row in rows if row.pixels is not None]
        texts = [self.model.text(row.source_prompt) for row in rows]
        trajectories = invert(
            self.unet,
            torch.stack(_padded(encoded, shape.images)),
            torch.stack(_padded(texts, shape.images)),
            self.schedule,
            self.inversion.inversion_steps,
        )
        for index, row in enumerate(rows):
            # What is kept is what is used, whether it comes from the cache or not.
            kept = trajectories[:, index].to("cpu", self._kept_dtype)
            key = self.key(row)
            if self.cache is not None:
                self.cache.put(key, kept.numpy())
            yield row, Origin(kept.float(), row.pixels, key)

    @property
    def _kept_dtype(self) -> torch.dtype:
        """Half precision is enough for a UNet that computes in it."""
        return torch.float32 if self.model.dtype == torch.float32 else torch.float16

    def _generate(self, rows: list[Row], shape: Shape) -> Iterable[tuple[Row, Origin]]:
        if not rows:
            return
        channels, _ = self.model.latent_shape
        side = self.resolution // self.model.files.scale_factor
        noise = []
        for row in rows:
            generator = torch.Generator("cpu").manual_seed(row.seed)
            noise.append(torch.randn((channels, side, side), generator=generator))
        full = _padded(rows, shape.images)
        prompts = Prompts(
            target=torch.stack([self.model.text(row.source_prompt) for row in full]),
            negative=torch.stack([self.model.text("") for _ in full]),
            scale=torch.full((len(full),), SOURCE_GUIDANCE_SCALE, device=self.model.device),
        )
        start = torch.stack(_padded(noise, shape.images)).to(self.model.device)
        x0, trajectories = generate(self.unet, start, prompts, self.schedule)
        for index, row in enumerate(rows):
            yield row, Origin(trajectories[:, index].cpu(), self._decode(x0[index]))

    def _decode(self, latents: torch.Tensor) -> Image.Image | None:
        try:
            return self.model.decode(latents)
        except FloatingPointError:
            return None


def _padded(items: Sequence[T], length: int) -> list[T]:
    """The items, the last one repeated up to a fixed length."""
    return [*items, *[items[-1]] * (length - len(items))]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error)  # torch's allocator on CPU has no type of its own
