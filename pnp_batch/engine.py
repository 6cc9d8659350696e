"""The engine: rows of one device in, translated pictures out, with no Ray in sight.

Packs rows into batches of fixed shape, finds or makes each guidance image's trajectory, runs the
method, and turns what goes wrong with a row into that row's outcome.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from PIL import Image

from pnp_batch import methods
from pnp_batch.batches import RECIPE, Grid, Place, Shape, pack
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Guidance, Prompts, generate, noise
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import ModelError, OutOfMemory, RowError
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.models import StableDiffusion

# How strongly a generated guidance image follows its source prompt, as published.
SOURCE_GUIDANCE_SCALE = 5.0
REMEMBERED = 64
LONGEST_TOLD = 300
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One picture to make. `pixels` is the prepared guidance image, None to generate it."""

    row_id: str
    guidance: str
    pixels: Image.Image | None
    prompt: str
    method: str
    place: Place
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
    """What became of a row: an image or an error.

    Attributes:
        cause: what was raised, where no row error was foreseen.
        cached: the row's inversion was not computed.
    """

    row: Row
    image: Image.Image | None = None
    error: RowError | None = None
    cause: Exception | None = None
    latents_key: str | None = None
    cached: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Origin:
    """A guidance image on its way through the method: what the method starts from, and its picture.

    Of `trajectory` (steps, C, h, w) and `x0` (C, h, w) an image has what its method needs, a
    generated one both.
    """

    image: Image.Image | None
    trajectory: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    x0: torch.Tensor = field(default_factory=lambda: torch.empty(0))
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
        self,
        rows: Sequence[Row],
        begin: Callable[[Sequence[Row]], bool] = lambda rows: True,
        *,
        tight: bool = False,
    ) -> Iterator[Outcome]:
        """Translates rows, in batches.

        Args:
            rows: of any images, methods and shapes.
            begin: called with the rows of each batch before it; once it answers False, the
                remaining rows have no outcome.
            tight: no padding. Less memory, but not quite the bits of the padded batch.

        Yields:
            One outcome a row, in the order of the batches.
        """
        for grid in pack(rows):
            present = [row for row in grid.cells if row is not None]
            if not begin(present):
                return
            yield from self._fitting(_tight(present) if tight else grid)

    def _fitting(self, grid: Grid[Row]) -> Iterator[Outcome]:
        """Runs a batch; when memory runs out, its halves; what else fails, each row alone."""
        begun = time.perf_counter()
        rows = [row for row in grid.cells if row is not None]
        try:
            outcomes = list(self._batch(grid))
        except torch.AcceleratorError:
            raise  # the device is lost for this process
        except Exception as error:  # noqa: BLE001 - a method may raise anything
            no_memory = _is_out_of_memory(error)
            parts = self._halves(grid) if no_memory else [grid.only(row) for row in rows]
            if len(rows) == 1 and (grid.shape.rows == 1 or not no_memory):
                yield self._failed(rows[0], error)
                return
        else:
            each = (time.perf_counter() - begun) / len(rows)
            yield from (replace(outcome, seconds=each) for outcome in outcomes)
            return
        for part in parts:
            yield from self._fitting(part)

    def _halves(self, grid: Grid[Row]) -> list[Grid[Row]]:
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        rows = [row for row in grid.cells if row is not None]
        middle = max(1, len(rows) // 2)
        return [_tight(half) for half in (rows[:middle], rows[middle:]) if half]

    def _failed(self, row: Row, error: Exception) -> Outcome:
        if _is_out_of_memory(error):
            what = f"the device has too little memory for one row at {self.resolution} px"
            return Outcome(row, error=OutOfMemory(f"{what}; use a smaller --resolution"))
        told = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_TOLD]
        failure = ModelError(f"{row.method} failed with this row alone ({told}); retry the row")
        return Outcome(row, error=failure, cause=error)

    def _batch(self, grid: Grid[Row]) -> Iterator[Outcome]:
        """Translates one batch."""
        leaders = [own[0] if own else None for own in grid.slots]
        method = methods.get(next(row.method for row in leaders if row is not None))
        origins = self._find(leaders, method)
        latents = None
        if method.uses_model:
            rows = _filled(grid.cells)
            latents = method.translate(
                methods.Batch(
                    self.unet,
                    self.schedule,
                    self._guidance(leaders, origins, grid.shape, method),
                    self._prompts(rows),
                    self._noise(rows),
                    rows[0].parameters,
                )
            )
        for cell, row in enumerate(grid.cells):
            if row is None:
                continue
            origin = origins[row.guidance]
            done = Outcome(row, latents_key=origin.key, cached=origin.cached)
            image = origin.image if latents is None else self._decode(latents[cell])
            if image is None:
                what = f"{row.method} gave values that are not finite"
                yield replace(done, error=ModelError(f"{what}; try another dtype or guidance"))
            else:
                yield replace(done, image=image)

    def _guidance(
        self,
        leaders: list[Row | None],
        origins: Mapping[str, Origin],
        shape: Shape,
        method: methods.Method,
    ) -> Guidance:
        rows = _filled(leaders)
        images = [origins[row.guidance] for row in rows]
        device = self.model.device
        text = torch.stack([self.model.text(row.source_prompt) for row in rows])
        owner = torch.arange(shape.rows, device=device) // shape.share
        if method.inverts:
            trajectories = [image.trajectory.to(device) for image in images]
            return Guidance(torch.stack(trajectories, dim=1), text, owner)
        x0 = torch.stack([image.x0 for image in images]).to(device)
        return Guidance(torch.empty(0), text, owner, x0)

    def _noise(self, rows: Sequence[Row]) -> torch.Tensor:
        """Noise (N, C, h, w) of each row's seed, whose first draw made its generated guidance."""
        drawn = [noise(row.seed, self._latent_shape, row.pixels is None) for row in rows]
        return torch.stack(drawn).to(self.model.device)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        side = self.resolution // self.model.files.scale_factor
        return self.model.latent_shape[0], side, side

    def _prompts(self, rows: Sequence[Row]) -> Prompts:
        scale = torch.tensor([row.guidance_scale for row in rows], device=self.model.device)
        return Prompts(
            target=torch.stack([self.model.text(row.prompt) for row in rows]),
            negative=torch.stack([self.model.text(row.negative_prompt) for row in rows]),
            scale=scale,
        )

    def _find(self, leaders: list[Row | None], method: methods.Method) -> dict[str, Origin]:
        """The origin of each image: remembered, cached, or made now, all in one batch."""
        found: dict[str, Origin] = {}
        for row in (leader for leader in leaders if leader is not None):
            if row.pixels is not None and not method.uses_model:
                found[row.guidance] = Origin(row.pixels)
            elif row.pixels is not None and not method.inverts:
                found[row.guidance] = Origin(row.pixels, x0=self.model.encode(row.pixels))
            elif row.guidance in self._origins:
                self._origins.move_to_end(row.guidance)
                found[row.guidance] = self._origins[row.guidance]
            elif row.pixels is not None and (cached := self._cached(row)) is not None:
                found[row.guidance] = self._remember(row, cached)
        left = [row if row and row.guidance not in found else None for row in leaders]
        for make, given in ((self._invert, True), (self._generate, False)):
            wanted = [row if row and (row.pixels is not None) == given else None for row in left]
            if any(wanted):
                made = make(wanted)
                found |= {row.guidance: self._remember(row, origin) for row, origin in made}
        return found

    def _remember(self, row: Row, origin: Origin) -> Origin:
        # Rows of the image that come later find it here, and find it in the cache of their job.
        self._origins[row.guidance] = replace(origin, cached=True)
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
        return Origin(row.pixels, torch.from_numpy(stored).float(), key=key, cached=True)

    def _invert(self, slots: list[Row | None]) -> Iterator[tuple[Row, Origin]]:
        """Inverts the images of a batch, each in its slot."""
        rows = _filled(slots)
        encoded = {row.guidance: self.model.encode(row.pixels) for row in rows if row.pixels}
        trajectories = invert(
            self.unet,
            torch.stack([encoded[row.guidance] for row in rows]),
            torch.stack([self.model.text(row.source_prompt) for row in rows]),
            self.schedule,
            self.inversion.inversion_steps,
        )
        for slot, wanted in enumerate(slots):
            if wanted is None:
                continue
            # What is kept is what is used, whether it comes from the cache or not.
            kept = trajectories[:, slot].to("cpu", self._kept_dtype)
            key = self.key(wanted)
            if self.cache is not None:
                self.cache.put(key, kept.numpy())
            yield wanted, Origin(wanted.pixels, kept.float(), key=key)

    @property
    def _kept_dtype(self) -> torch.dtype:
        """Half precision is enough for a UNet that computes in it."""
        return torch.float32 if self.model.dtype == torch.float32 else torch.float16

    def _generate(self, slots: list[Row | None]) -> Iterator[tuple[Row, Origin]]:
        """Generates the guidance images of a batch from their source prompts, each in its slot."""
        rows = _filled(slots)
        prompts = Prompts(
            target=torch.stack([self.model.text(row.source_prompt) for row in rows]),
            negative=torch.stack([self.model.text("") for _ in rows]),
            scale=torch.full((len(rows),), SOURCE_GUIDANCE_SCALE, device=self.model.device),
        )
        start = torch.stack([noise(row.seed, self._latent_shape) for row in rows])
        x0, met = generate(self.unet, start.to(self.model.device), prompts, self.schedule)
        for slot, wanted in enumerate(slots):
            if wanted is not None:
                yield wanted, Origin(self._decode(x0[slot]), met[:, slot].cpu(), x0[slot])

    def _decode(self, latents: torch.Tensor) -> Image.Image | None:
        try:
            return self.model.decode(latents)
        except FloatingPointError:
            return None


def _filled(cells: Sequence[T | None]) -> list[T]:
    """The cells, with something in those that are empty: a batch keeps its shape."""
    filler = next(cell for cell in cells if cell is not None)
    return [filler if cell is None else cell for cell in cells]


def _tight(rows: list[Row]) -> Grid[Row]:
    """The smallest batch that holds these rows of one recipe."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        images.setdefault(row.guidance, []).append(row)
    share = max(map(len, images.values()))
    cells = [cell for own in images.values() for cell in (*own, *[None] * (share - len(own)))]
    return Grid(Shape(len(images), share), tuple(cells))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error)  # torch's allocator on CPU has no type of its own
