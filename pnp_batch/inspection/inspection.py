"""Looks into a model at work: images in, what its decoder makes of them out.

Each image is inverted as a run inverts it. The UNet is then evaluated at the image's own latents
x_t, as Plug-and-Play's guidance branch is, with the empty prompt or the image's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from pnp_batch import source
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.schedule import Schedule, make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidConfig
from pnp_batch.inspection.capture import Captured, Layers, Projected, capture
from pnp_batch.inspection.components import principal
from pnp_batch.inspection.words import WordMap, attention_to_text, word_layers, word_maps
from pnp_batch.layers import ATTENTION, DECODER
from pnp_batch.models import StableDiffusion
from pnp_batch.steps import Sampling


@dataclass(frozen=True)
class Wanted:
    """What to look at.

    Attributes:
        layers: decoder layers, 0 to 11; self-attention is shown of those from 4 on.
        times: shares of the sampling, from 0, where it begins with noise, to 1.
        prompt: of the images, as `source_prompt` of a row; empty to show no words.
        sampling, resolution, fit: as of `pnp-batch run`; None is the model's own resolution.

    Raises `InvalidConfig` when a value is out of range.
    """

    layers: tuple[int, ...] = (1, 4, 7, 11)
    times: tuple[float, ...] = (0.45, 0.8)
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    resolution: int | None = None
    fit: str = "crop"

    def __post_init__(self) -> None:
        """Refuses what no model has, and brings layers and times into order."""
        for name, values, known in (
            ("layers", self.layers, DECODER),
            ("times", self.times, (0, 1)),
        ):
            low, high = known[0], known[-1]
            if not values or not all(low <= value <= high for value in values):
                raise InvalidConfig(
                    f"{name}: {', '.join(map(str, values)) or 'none'} given",
                    f"give one or more from {low} to {high}",
                )
            object.__setattr__(self, name, tuple(sorted(set(values))))


@dataclass(frozen=True)
class Map:
    """Three principal components as colours, of one layer at one timestep.

    Attributes:
        image: the number of the image; None where the components are those of all images together.
        channels: of the rows that the components are of.
        explained: each component's share of the variance.
        colours: (B, h, w, 3) from 0 to 1, with B = 1 for one image.
    """

    image: int | None
    layer: int
    timestep: int
    channels: int
    explained: tuple[float, ...]
    colours: torch.Tensor


@dataclass(frozen=True)
class Inspection:
    """What was found, in the order of the sampling, then of layers.

    Attributes:
        pictures: the prepared images.
        features: one for each timestep and layer, fitted to all images together.
        self_attention: of each image, one for each timestep and layer: the columns stand for
            places in that image, so that those of two images have nothing in common.
        word_layers: the layers that the words' maps are averaged over, as they are over timesteps.
        words: of each image, those of the prompt.
    """

    pictures: tuple[Image.Image, ...]
    timesteps: tuple[int, ...]
    features: tuple[Map, ...]
    self_attention: tuple[tuple[Map, ...], ...]
    word_layers: tuple[int, ...]
    words: tuple[tuple[WordMap, ...], ...]


def inspect(
    model: StableDiffusion,
    images: Sequence[Image.Image],
    wanted: Wanted,
    begin: Callable[[int], None] = lambda image: None,
) -> Inspection:
    """Figures 3 and 6 of Tumanyan et al. (CVPR 2023, arXiv 2211.12572), and the words' places.

    Args:
        model: the loaded model, which is left as it was.
        images: at least one, of any size and mode.
        wanted: layers, times, prompt, and how the images are prepared and inverted.
        begin: called with each image's number before it.

    Raises:
        InvalidConfig: no images, or a prompt without words.
        InvalidModel: the model lacks a layer, or computes what is not finite.
    """
    words = model.words(wanted.prompt)
    if not images or (wanted.prompt and not words):
        what = "the prompt has no words" if images else "there is no image to inspect"
        raise InvalidConfig(what, "see pnp-batch inspect --help")
    side = model.files.working_resolution(wanted.resolution)
    pictures = tuple(source.prepare(image, side, wanted.fit) for image in images)
    layers = Layers(
        features=wanted.layers,
        self_attention=tuple(layer for layer in wanted.layers if layer in ATTENTION),
        cross_attention=word_layers(model.latent_shape[1]) if words else (),
    )
    schedule = make_schedule(model.files.configs["scheduler"], wanted.sampling)
    steps = sorted({min(int(t * schedule.steps), schedule.steps - 1) for t in wanted.times})
    features: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
    attention, placed = [], []
    for number, picture in enumerate(pictures):
        begin(number)
        to_words: list[Projected] = []
        own = []
        for t, found in _captured(model, picture, wanted.prompt, (schedule, steps), layers):
            for layer, values in found.features.items():
                features[t, layer].append(values)
            own += [_of_attention(number, k, t, p) for k, p in found.self_attention.items()]
            to_words += found.cross_attention.values()
        attention.append(tuple(own))
        placed.append(tuple(word_maps(attention_to_text(to_words), words)) if words else ())
    return Inspection(
        pictures,
        timesteps=tuple(schedule.timesteps[step] for step in steps),
        features=tuple(_of_features(k, t, values) for (t, k), values in features.items()),
        self_attention=tuple(attention),
        word_layers=layers.cross_attention,
        words=tuple(placed),
    )


def _captured(
    model: StableDiffusion,
    picture: Image.Image,
    prompt: str,
    at: tuple[Schedule, Sequence[int]],
    layers: Layers,
) -> Iterator[tuple[int, Captured]]:
    """What one image makes the UNet compute at some steps of a schedule, with their timesteps."""
    schedule, steps = at
    unet, text = UNet(model.unet), model.text(prompt)[None]
    trajectory = invert(unet, model.encode(picture)[None], text, schedule)
    for step in steps:
        t = schedule.timesteps[step]
        yield t, capture(unet, trajectory[step], t, text, layers)


def _of_features(layer: int, t: int, images: Sequence[torch.Tensor]) -> Map:
    """The components of one layer's features (C, h, w) of all images."""
    stacked = torch.stack(list(images)).movedim(1, -1)
    found = principal(stacked.flatten(0, 2))
    colours = found.colours().unflatten(0, stacked.shape[:3])
    return Map(None, layer, t, stacked.shape[-1], found.explained, colours)


def _of_attention(image: int, layer: int, t: int, attention: Projected) -> Map:
    """The components of one image's self-attention (n, n), whose rows are the places."""
    rows = attention.probabilities()
    side = round(len(rows) ** 0.5)
    found = principal(rows)
    colours = found.colours().unflatten(0, (1, side, side))
    return Map(image, layer, t, len(rows), found.explained, colours)
