"""Draws a `Spec`: the finished picture, the exact mask of its object, and its caption."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pnp_batch.world import objects, renditions, scenes
from pnp_batch.world.captions import caption
from pnp_batch.world.spec import COLOURLESS, COLOURS, RGB, Spec

SUPERSAMPLING = 3
PLAIN: RGB = (150, 150, 150)


@dataclass(frozen=True)
class Drawing:
    """A picture (RGB), the mask of its object (bool, height x width), its caption and its spec."""

    image: Image.Image
    mask: NDArray[np.bool_]
    caption: str
    spec: Spec


def draw(spec: Spec, resolution: int = 64) -> Drawing:
    """Draws ``spec`` at ``resolution`` x ``resolution`` pixels.

    The seed's streams for object, scene and rendition are independent, so a spec that differs in
    one attribute only shows the same picture in everything else: the true target of an edit.
    """
    side = resolution * SUPERSAMPLING
    colour = paint_colour(spec)
    layer = object_layer(spec, side, colour)
    scene = scenes.PAINTERS[spec.scene](side, stream(spec, "scene"))
    layers = renditions.Layers(scene, layer, colour)
    image = renditions.PAINTERS[spec.rendition](layers, stream(spec, "rendition"))
    small = layer.getchannel("A").resize((resolution, resolution), Image.Resampling.BOX)
    return Drawing(
        image=image.resize((resolution, resolution), Image.Resampling.BOX),
        mask=np.asarray(small) > 127,
        caption=caption(spec),
        spec=spec,
    )


def stream(spec: Spec, name: str) -> random.Random:
    """The spec's own random numbers for one purpose; strings seed alike in every process."""
    return random.Random(f"{spec.seed}/{name}")


def paint_colour(spec: Spec) -> RGB:
    """The palette's colour with a little jitter; grey where the rendition shows no colour."""
    base = PLAIN if spec.rendition in COLOURLESS else COLOURS[spec.colour]
    rng = stream(spec, "colour")
    red, green, blue = (min(255, max(0, round(v + rng.uniform(-12, 12)))) for v in base)
    return red, green, blue


def object_layer(spec: Spec, side: int, colour: RGB) -> Image.Image:
    """The object alone on a transparent square, with a thin outline that sets it off."""
    layer = Image.new("RGBA", (side, side))
    rng = stream(spec, "object")
    pen = objects.Pen(
        layer=layer,
        centre=(spec.x * side, spec.y * side),
        scale=spec.size * side,
        flip=spec.flip,
        colour=colour,
        a=rng.uniform(-0.1, 0.1),
        b=rng.uniform(-0.1, 0.1),
    )
    objects.PAINTERS[spec.object](pen)
    ink = (150, 150, 165) if sum(colour) < 200 else objects.DARK
    alpha = layer.getchannel("A").filter(ImageFilter.MaxFilter(2 * (side // 128) + 1))
    outlined = Image.new("RGBA", (side, side), (*ink, 255))
    outlined.putalpha(alpha)
    outlined.alpha_composite(layer)
    return outlined


def recast(spec: Spec, **changes: str) -> Spec:
    """``spec`` with some attributes replaced, such as the true target of an edit."""
    return replace(spec, **changes)  # type: ignore[arg-type]
