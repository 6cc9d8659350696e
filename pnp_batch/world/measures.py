"""Measures without any network: structure, and colour, scene and rendition read from the pixels.

Pictures are uint8 arrays (h, w, 3), masks bool arrays (h, w). What a picture shows is decided by
comparing it with drawings of the world, so the measures hold for pictures of this world only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pnp_batch.world.drawing import Drawing, draw, recast
from pnp_batch.world.spec import COLOURS, RENDITIONS, SCENES, random_spec

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

SOLID = ("flat", "oil", "pixel")
"""Renditions that fill their objects with colour: a mask can be read from them."""

REFERENCES = 2
"""Drawings of each colour in each scene; more of them read no better."""


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union, from 0 to 1."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def smooth(values: Floats) -> Floats:
    """A 1-2-1 blur in both directions."""
    padded = np.pad(values, ((1, 1), (1, 1)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    result: Floats = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return result


def edge_strength(picture: Picture) -> Floats:
    """The blurred length of the brightness gradient, shape (h, w)."""
    grey = picture.astype(np.float64).mean(-1)
    down, across = np.gradient(grey)
    return smooth(np.hypot(down, across))


def edge_correlation(a: Picture, b: Picture) -> float:
    """Pearson correlation of two pictures' edges, from -1 to 1."""
    first, second = edge_strength(a).ravel(), edge_strength(b).ravel()
    if first.std() < 1e-6 or second.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def read_mask(picture: Picture, threshold: float = 45.0) -> Mask:
    """The object's mask in a solid rendition: what the background does not reach from outside.

    A pixel counts as background if it is closer than ``threshold`` (RGB distance) to a colour at
    the border of its row or a neighbouring one.
    """
    values = picture.astype(np.float64)
    height, width = values.shape[:2]
    band = max(2, width // 16)
    border = np.concatenate([values[:, :band], values[:, -band:]], 1)
    rows = np.clip(np.arange(height)[:, None] + np.array([-1, 0, 1]), 0, height - 1)
    near = border[rows].reshape(height, -1, 3)
    distance = np.linalg.norm(values[:, :, None] - near[:, None], axis=-1).min(-1)
    open_ground = distance < threshold
    reached = np.zeros_like(open_ground)
    reached[:, [0, -1]] = True
    reached[0] = True
    while True:
        grown = open_ground & spread(reached) | reached
        if (grown == reached).all():
            return opened(~reached)
        reached = grown


def spread(mask: Mask) -> Mask:
    """The mask and its four neighbours."""
    padded = np.pad(mask, 1)
    result: Mask = (
        mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    )
    return result


def opened(mask: Mask) -> Mask:
    """Erosion, the largest piece around the densest place, dilation: without specks."""
    eroded = ~spread(~mask)
    if not eroded.any():
        return mask
    density = eroded.astype(np.float64)
    for _ in range(6):
        density = smooth(density)
    piece = np.zeros_like(mask)
    piece[np.unravel_index(int(np.argmax(density * eroded)), mask.shape)] = True
    while True:
        grown = spread(piece) & eroded
        if (grown == piece).all():
            return spread(spread(grown)) & mask
        piece = grown


def chroma(pixels: Floats) -> Floats:
    """Hue and saturation as a point on the colour disc, and a share of brightness, shape (n, 3)."""
    red, green, blue = pixels.T
    grey = pixels.mean(-1)
    across, up = (2 * red - green - blue) / 2, (green - blue) * 3**0.5 / 2
    length = np.maximum(np.hypot(across, up), 1e-6)
    saturation = np.minimum(length / np.maximum(pixels.max(-1), 40), 1)
    return np.stack([across / length * saturation, up / length * saturation, 0.9 * grey / 255], -1)


@dataclass(frozen=True)
class Classes:
    """Feature means of drawings, one per name, and the inverse of their common covariance."""

    names: tuple[str, ...]
    means: Floats
    precision: Floats

    @classmethod
    def fit(cls, samples: Mapping[str, list[Floats]]) -> Classes:
        """From feature vectors of each name: linear discriminant analysis."""
        means = np.stack([np.mean(own, axis=0) for own in samples.values()])
        spread_out = np.concatenate(
            [np.stack(own) - mean for own, mean in zip(samples.values(), means, strict=True)]
        )
        covariance = np.cov(spread_out.T)
        ridge = 0.05 * np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance))
        return cls(
            tuple(samples), means, np.asarray(np.linalg.inv(covariance + ridge), dtype=np.float64)
        )

    def nearest(self, features: Floats) -> str:
        """The name whose mean is nearest in Mahalanobis distance."""
        away = self.means - features
        return self.names[int(np.argmin(np.einsum("ni,ij,nj->n", away, self.precision, away)))]


def colour_features(picture: Picture, mask: Mask) -> Floats:
    """How the object's pixels spread over the palette: soft votes of each pixel."""
    pixels = picture[mask].astype(np.float64)
    if not len(pixels):
        return np.full(len(COLOURS), 1 / len(COLOURS))
    palette = chroma(np.array(list(COLOURS.values()), dtype=np.float64))
    distance = ((chroma(pixels)[:, None] - palette[None]) ** 2).sum(-1)
    votes = np.exp(-distance / 0.03)
    votes /= votes.sum(-1, keepdims=True) + 1e-9
    return np.asarray(votes.mean(0))


def scene_features(picture: Picture, mask: Mask) -> Floats:
    """Mean colour and roughness of eight bands from top to bottom, outside the object."""
    values = picture.astype(np.float64) / 255
    rough = edge_strength(picture) / 64
    outside = ~spread(spread(mask))
    found = []
    for rows in np.array_split(np.arange(len(values)), 8):
        seen = outside[rows]
        if not seen.any():
            seen = np.ones_like(seen)
        found += [*values[rows][seen].mean(0), rough[rows][seen].mean(), values[rows][seen].std()]
    return np.array(found)


def rendition_features(picture: Picture) -> Floats:
    """Brightness, colour, fine noise and the strength of a four-pixel grid."""
    values = picture.astype(np.float64) / 255
    grey = values.mean(-1)
    noise = np.abs(grey - smooth(grey))
    step = grey.shape[0] // 16
    across = np.abs(np.diff(values, axis=1)).mean((0, 2))
    down = np.abs(np.diff(values, axis=0)).mean((1, 2))
    on = np.arange(len(across)) % step == step - 1
    grid = [(d[on].mean() - d[~on].mean()) / (d.mean() + 0.01) for d in (across, down)]
    saturation = values.max(-1) - values.min(-1)
    quantiles = np.quantile(grey, (0.1, 0.5, 0.9))
    return np.array(
        [
            *np.median(values, axis=(0, 1)),
            *quantiles,
            saturation.mean(),
            np.median(saturation),
            np.log(np.median(noise) + 0.003),
            np.log(noise.mean() + 0.003),
            *grid,
        ]
    )


@cache
def references(rendition: str) -> tuple[Drawing, ...]:
    """The same pictures in every rendition, `REFERENCES` of each colour in each scene."""
    rng = random.Random("references")
    shown = [
        random_spec(rng, rendition="flat", colour=colour, scene=scene)
        for colour, scene in product(COLOURS, SCENES)
        for _ in range(REFERENCES)
    ]
    dark = {"black"} if rendition == "neon" else set()
    return tuple(draw(recast(s, rendition=rendition)) for s in shown if s.colour not in dark)


@cache
def colour_classes(rendition: str) -> Classes:
    """The colours as `colour_features` sees them in drawings of one rendition."""
    samples: dict[str, list[Floats]] = {}
    for d in references(rendition):
        seen = colour_features(np.asarray(d.image), d.mask)
        samples.setdefault(d.spec.colour, []).append(seen)
    return Classes.fit(samples)


@cache
def scene_classes(rendition: str) -> Classes:
    """The scenes as `scene_features` sees them in drawings of one rendition."""
    samples: dict[str, list[Floats]] = {}
    for d in references(rendition):
        seen = scene_features(np.asarray(d.image), d.mask)
        samples.setdefault(d.spec.scene, []).append(seen)
    return Classes.fit(samples)


@cache
def rendition_classes() -> Classes:
    """The renditions as `rendition_features` sees them in drawings."""
    return Classes.fit(
        {
            name: [rendition_features(np.asarray(d.image)) for d in references(name)]
            for name in RENDITIONS
        }
    )


def read_colour(picture: Picture, mask: Mask, rendition: str) -> str:
    """The name of the object's colour, looked for where ``mask`` says, in a known rendition."""
    return colour_classes(rendition).nearest(colour_features(picture, mask))


def read_scene(picture: Picture, mask: Mask, rendition: str) -> str:
    """The name of the scene around ``mask``, in a known rendition."""
    return scene_classes(rendition).nearest(scene_features(picture, mask))


def read_rendition(picture: Picture) -> str:
    """The name of the rendition."""
    return rendition_classes().nearest(rendition_features(picture))
