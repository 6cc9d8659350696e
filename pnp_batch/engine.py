"""The engine: rows of one device in, translated pictures out, with no Ray in sight.

Packs rows into batches of fixed shape, asks for each guidance image's `origins`, runs the method,
and turns what goes wrong with a row into that row's outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from pnp_batch import methods
from pnp_batch.batches import Grid, Shape, pack
from pnp_batch.diffusion.sampling import Guidance, Prompts, noise
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.stopwatch import Stopwatch
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import JobError, ModelError, OutOfMemory, RowError
from pnp_batch.latents import Inversion, LatentCache
from pnp_batch.models import Decoding, StableDiffusion
from pnp_batch.origins import Origin, Origins, Row, filled
from pnp_batch.steps import Sampling

LONGEST_TOLD = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a row: an image or an error.

    Attributes:
        cause: what was raised, where no row error was foreseen.
        cached: the row's inversion was not computed.
        extras: small pictures that the method shows beside the result, by name, uint8 (h, w).
    """

    row: Row
    image: Image.Image | None = None
    error: RowError | None = None
    cause: Exception | None = None
    latents_key: str | None = None
    cached: bool = False
    seconds: float = 0.0
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def pictures(self) -> dict[str, Image.Image]:
        """The extras as large as the image, each cell a square."""
        size = (0, 0) if self.image is None else self.image.size
        nearest = Image.Resampling.NEAREST
        return {n: Image.fromarray(cells).resize(size, nearest) for n, cells in self.extras.items()}


@dataclass(frozen=True)
class _Made:
    """An outcome whose image may still be on its way from the device.

    Attributes:
        watch, of: how long its batch took, and the rows that it was for.
        extras: on the device, too.
    """

    so_far: Outcome
    decoding: Decoding | None = None
    watch: Stopwatch | None = None
    of: int = 1
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def outcome(self) -> Outcome:
        """Waits for the image."""
        made = self.so_far
        if self.watch is not None:
            made = replace(made, seconds=self.watch.seconds() / self.of)
        if self.decoding is not None:
            with suppress(FloatingPointError):
                made = replace(made, image=self.decoding.image())
        if self.extras:
            found = {name: picture.cpu().numpy() for name, picture in self.extras.items()}
            made = replace(made, extras=found)
        if made.image is not None or made.error is not None:
            return made
        what = f"{made.row.method} gave values that are not finite"
        return replace(made, error=ModelError(f"{what}; try another dtype or guidance"))


class Engine:
    """A loaded model that translates rows.

    Args:
        model: the loaded model.
        sampling: steps of sampling and inversion, and which of them are whole.
        resolution: side of the working images; every row's `pixels` has it.
        cache: where trajectories are kept between jobs, or None.
    """

    def __init__(
        self,
        model: StableDiffusion,
        *,
        sampling: Sampling,
        resolution: int,
        cache: LatentCache | None = None,
    ) -> None:
        self.model = model
        self.unet = UNet(model.unet)
        self.schedule = make_schedule(model.files.configs["scheduler"], sampling)
        self.resolution = resolution
        dtype = str(model.dtype).removeprefix("torch.")
        inversion = Inversion.of(sampling, model.files.digest, resolution, dtype)
        self.origins = Origins(model, self.unet, self.schedule, inversion, cache)

    def prepare(self, rows: Sequence[Row]) -> None:
        """Finds or makes the origins of rows, which a `translate` of them then remembers."""
        self.origins.expect(_inverting(rows))
        for grid in pack(rows):
            self.origins.find(*_led(grid))
        self.origins.settle()

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
            One outcome a row, in the order of the batches. Inversions that were made are in the
            cache when the last one has been taken.
        """
        self.origins.expect(_inverting(rows))
        before: list[_Made] = []
        try:
            for grid in pack(rows):
                if not begin(grid.rows):
                    break
                # The device begins with this batch before the pictures of the last one are waited
                # for, so that it always has something to do.
                made = list(self._fitting(_tight(grid.rows) if tight else grid))
                yield from (one.outcome() for one in before)
                before = made
            yield from (one.outcome() for one in before)
        finally:
            self.origins.settle()

    def _fitting(self, grid: Grid[Row]) -> Iterator[_Made]:
        """Runs a batch; when memory runs out, its halves; what else fails, each row alone."""
        watch = Stopwatch(self.model.device)
        rows = grid.rows
        try:
            with watch.running():
                made = list(self._batch(grid))
        except (torch.AcceleratorError, JobError):
            raise  # the device is lost for this process, or the storage for all
        except Exception as error:  # noqa: BLE001 - a method may raise anything
            no_memory = _is_out_of_memory(error)
            parts = self._halves(grid) if no_memory else [grid.only(row) for row in rows]
            if len(rows) == 1 and (grid.shape.rows == 1 or not no_memory):
                yield _Made(self._failed(rows[0], error))
                return
        else:
            yield from (replace(one, watch=watch, of=len(rows)) for one in made)
            return
        for part in parts:
            yield from self._fitting(part)

    def _halves(self, grid: Grid[Row]) -> list[Grid[Row]]:
        self.origins.expect([])  # which takes memory, too
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        rows = grid.rows
        middle = max(1, len(rows) // 2)
        return [_tight(half) for half in (rows[:middle], rows[middle:]) if half]

    def _failed(self, row: Row, error: Exception) -> Outcome:
        if _is_out_of_memory(error):
            what = f"the device has too little memory for one row at {self.resolution} px"
            return Outcome(row, error=OutOfMemory(f"{what}; use a smaller --resolution"))
        if isinstance(error, RowError):
            return Outcome(row, error=error)
        told = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_TOLD]
        failure = ModelError(f"{row.method} failed with this row alone ({told}); retry the row")
        return Outcome(row, error=failure, cause=error)

    def _batch(self, grid: Grid[Row]) -> Iterator[_Made]:
        """Translates one batch."""
        leaders, method = _led(grid)
        origins = self.origins.find(leaders, method)
        latents = None
        extras: list[dict[str, torch.Tensor]] = [{} for _ in grid.cells]
        if method.uses_model:
            rows = filled(grid.cells)
            latents = method.translate(
                methods.Batch(
                    self.unet,
                    self.schedule,
                    self._guidance(leaders, origins, grid.shape, method),
                    self._prompts(rows),
                    self._noise(rows),
                    rows[0].parameters,
                    tuple(_asked(row) for row in rows),
                    self.model,
                    lambda cell, name, picture: extras[cell].update({name: picture}),
                )
            )
        for cell, row in enumerate(grid.cells):
            if row is None:
                continue
            origin = origins[row.guidance]
            done = Outcome(row, latents_key=origin.key, cached=origin.cached)
            if latents is None:
                yield _Made(replace(done, image=origin.image))
            else:
                yield _Made(done, self.model.decoding(latents[cell]), extras=extras[cell])

    def _guidance(
        self,
        leaders: list[Row | None],
        origins: Mapping[str, Origin],
        shape: Shape,
        method: methods.Method,
    ) -> Guidance:
        rows = filled(leaders)
        images = [origins[row.guidance] for row in rows]
        device = self.model.device
        text = torch.stack([self.model.text(row.source_prompt) for row in rows])
        owner = torch.arange(shape.rows, device=device) // shape.share
        trajectory = x0 = torch.empty(0)
        if method.inverts:
            trajectory = torch.stack([image.trajectory.to(device) for image in images], dim=1)
        if method.takes_x0(rows[0].parameters):
            x0 = torch.stack([image.x0 for image in images]).to(device)
        return Guidance(trajectory, text, owner, x0)

    def _noise(self, rows: Sequence[Row]) -> torch.Tensor:
        """Noise (N, C, h, w) of each row's seed, whose first draw made its generated guidance."""
        drawn = [noise(row.seed, self.origins.latent_shape, row.pixels is None) for row in rows]
        return torch.stack(drawn).to(self.model.device)

    def _prompts(self, rows: Sequence[Row]) -> Prompts:
        scale = torch.tensor([row.guidance_scale for row in rows], device=self.model.device)
        return Prompts(
            target=torch.stack([self.model.text(row.prompt) for row in rows]),
            negative=torch.stack([self.model.text(row.negative_prompt) for row in rows]),
            scale=scale,
        )


def _asked(row: Row) -> methods.Asked:
    return methods.Asked(row.prompt, row.negative_prompt, row.source_prompt, row.seed, row.own)


def _led(grid: Grid[Row]) -> tuple[list[Row | None], methods.Method]:
    """A row for each image of a batch, and the method of all of them."""
    leaders = [own[0] if own else None for own in grid.slots]
    return leaders, methods.get(grid.rows[0].method)


def _inverting(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if methods.get(row.method).inverts]


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
