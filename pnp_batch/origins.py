"""Origins: what a method starts from, a guidance image's trajectory or latents, found or made.

In: rows of a batch. Out: one origin for each of their guidance images, remembered from an earlier
batch, taken from the latent cache, inverted, or generated from a source prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from PIL import Image

from pnp_batch.batches import Place
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import SOURCE_GUIDANCE_SCALE, Prompts, generate, noise
from pnp_batch.diffusion.schedule import Schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.latents import Inversion, LatentCache, Overlapped
from pnp_batch.methods import Method
from pnp_batch.models import StableDiffusion

REMEMBERED = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One picture to make.

    Attributes:
        pixels: the prepared guidance image, None to generate it.
        parameters: the method's, as far as all rows of a batch share them.
        own: those that each row has for itself.
    """

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
    parameters: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> tuple[object, ...]:
        """Rows with another one cannot share a UNet batch."""
        return (self.method, *sorted(self.parameters.items()))


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


class Origins:
    """Finds or makes the origins of guidance images, with one model and one way to invert."""

    def __init__(
        self,
        model: StableDiffusion,
        unet: UNet,
        schedule: Schedule,
        inversion: Inversion,
        cache: LatentCache | None,
    ) -> None:
        self._model = model
        self._unet = unet
        self._schedule = schedule
        self.inversion = inversion
        self._cache = Overlapped(cache) if cache else None
        self._found: OrderedDict[str, Origin] = OrderedDict()
        self._expected: dict[str, Row] = {}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        side = self.inversion.resolution // self._model.files.scale_factor
        return int(self._model.files.configs["unet"]["in_channels"]), side, side

    def expect(self, rows: Iterable[Row]) -> None:
        """Says which rows are to come, instead of those named before.

        Begins to read what they will need from the cache. Where their images are inverted together,
        the first `find` of one inverts all.
        """
        new = {row.guidance: row for row in rows if row.pixels is not None}
        self._expected = {name: row for name, row in new.items() if name not in self._found}
        if self._cache is not None:
            self._cache.expect(self.key(row) for row in self._expected.values())

    def settle(self) -> None:
        """Returns once every inversion that was made is in the cache; raises if one cannot be."""
        if self._cache is not None:
            self._cache.settle()

    def find(self, leaders: list[Row | None], method: Method) -> dict[str, Origin]:
        """The origin of each image: remembered, cached, or made now, all in one batch."""
        found: dict[str, Origin] = {}
        for row in (leader for leader in leaders if leader is not None):
            if row.pixels is not None and not method.uses_model:
                found[row.guidance] = Origin(row.pixels)
            elif row.pixels is not None and not method.inverts:
                found[row.guidance] = Origin(row.pixels, x0=self._model.encode(row.pixels))
            elif row.guidance in self._found:
                self._found.move_to_end(row.guidance)
                found[row.guidance] = self._remember(row, self._found[row.guidance])
            elif row.pixels is not None and (cached := self._cached(row)) is not None:
                found[row.guidance] = self._remember(row, cached)
        left = [row if row and row.guidance not in found else None for row in leaders]
        for make, given in ((self._invert, True), (self._generate, False)):
            wanted = [row if row and (row.pixels is not None) == given else None for row in left]
            if any(wanted):
                made = make(wanted)
                found |= {row.guidance: self._remember(row, origin) for row, origin in made}
        if method.inverts and method.takes_x0(filled(leaders)[0].parameters):
            found = {name: self._with_x0(name, origin) for name, origin in found.items()}
        return found

    def _with_x0(self, name: str, origin: Origin) -> Origin:
        if len(origin.x0) or origin.image is None:
            return origin
        x0 = self._model.encode(origin.image)
        if name in self._found:
            self._found[name] = replace(self._found[name], x0=x0)
        return replace(origin, x0=x0)

    def _remember(self, row: Row, origin: Origin) -> Origin:
        # Rows of the image that come later find it here, and find it in the cache of their job.
        self._found[row.guidance] = replace(origin, cached=True)
        while len(self._found) > REMEMBERED:
            self._found.popitem(last=False)
        return origin

    def _together(self, slots: list[Row | None]) -> list[Row | None]:
        """The images of a batch, and beside them those of the next ones that are inverted with it.

        If there are none, the batch stays as it is, rather than being padded to that size.
        """
        leaders = [row for row in slots if row is not None]
        place = leaders[0].place
        if place.ahead == 1 or len(slots) != place.images:
            return slots
        together: list[Row | None] = [None] * (place.images * place.ahead)
        for row in leaders:
            together[row.place.slot] = row
        for row in self._expected.values():
            at = row.place
            alike = (at.shape, at.ahead) == (place.shape, place.ahead)
            if not alike or together[at.slot] is not None or row.guidance in self._found:
                continue
            if (cached := self._cached(row)) is not None:
                self._remember(row, cached)
            else:
                together[at.slot] = row
        return together if sum(map(bool, together)) > len(leaders) else slots

    def key(self, row: Row) -> str:
        """The latent cache's key of a row's inversion."""
        assert row.pixels is not None
        return self.inversion.key(row.pixels.tobytes(), row.source_prompt)

    def _cached(self, row: Row) -> Origin | None:
        key = self.key(row)
        stored = self._cache.get(key) if self._cache else None
        if stored is None or stored.shape[0] != self._schedule.steps:
            return None
        return Origin(row.pixels, torch.from_numpy(stored).float(), key=key, cached=True)

    def _invert(self, slots: list[Row | None]) -> Iterator[tuple[Row, Origin]]:
        """Inverts the images of a batch, each in its slot."""
        wanted_now = {row.guidance for row in slots if row is not None}
        slots = self._together(slots)
        rows = filled(slots)
        encoded = {row.guidance: self._model.encode(row.pixels) for row in rows if row.pixels}
        trajectories = invert(
            self._unet,
            torch.stack([encoded[row.guidance] for row in rows]),
            torch.stack([self._model.text(row.source_prompt) for row in rows]),
            self._schedule,
        )
        for slot, wanted in enumerate(slots):
            if wanted is None:
                continue
            # What is kept is what is used, whether it comes from the cache or not.
            kept = trajectories[:, slot].to("cpu", self._kept_dtype)
            key = self.key(wanted)
            if self._cache is not None:
                self._cache.put(key, kept.numpy())
            origin = Origin(wanted.pixels, kept.float(), key=key)
            if wanted.guidance in wanted_now:
                yield wanted, origin
            else:
                self._found[wanted.guidance] = origin  # not yet used, so not yet told as made

    @property
    def _kept_dtype(self) -> torch.dtype:
        """Half precision is enough for a UNet that computes in it."""
        return torch.float32 if self._model.dtype == torch.float32 else torch.float16

    def _generate(self, slots: list[Row | None]) -> Iterator[tuple[Row, Origin]]:
        """Generates the guidance images of a batch from their source prompts, each in its slot."""
        rows = filled(slots)
        prompts = Prompts(
            target=torch.stack([self._model.text(row.source_prompt) for row in rows]),
            negative=torch.stack([self._model.text("") for _ in rows]),
            scale=torch.full((len(rows),), SOURCE_GUIDANCE_SCALE, device=self._model.device),
        )
        start = torch.stack([noise(row.seed, self.latent_shape) for row in rows])
        x0, met = generate(self._unet, start.to(self._model.device), prompts, self._schedule)
        for slot, wanted in enumerate(slots):
            if wanted is not None:
                yield wanted, Origin(picture(self._model, x0[slot]), met[:, slot].cpu(), x0[slot])


def picture(model: StableDiffusion, latents: torch.Tensor) -> Image.Image | None:
    """Latents (C, h, w) as a picture; None where they are not finite."""
    try:
        return model.decode(latents)
    except FloatingPointError:
        return None


def filled(cells: Sequence[T | None]) -> list[T]:
    """The cells, with something in those that are empty: a batch keeps its shape."""
    filler = next(cell for cell in cells if cell is not None)
    return [filler if cell is None else cell for cell in cells]
