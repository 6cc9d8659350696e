"""The renditions: each turns a scene and an object's layer into one finished picture."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pnp_batch.world.spec import RGB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layers:
    """What a rendition starts from: the scene (RGB), the object (RGBA) and the object's colour."""

    scene: Image.Image
    object: Image.Image
    colour: RGB

    def flat(self) -> Image.Image:
        """The object pasted on the scene."""
        image = self.scene.copy()
        image.paste(self.object, (0, 0), self.object)
        return image


def edges(image: Image.Image) -> Floats:
    """Edge strength from 0 to 1, shape (side, side): the largest channel's central difference."""
    side = image.width
    blurred = image.convert("RGB").filter(ImageFilter.GaussianBlur(side / 160))
    values, step = np.asarray(blurred, dtype=np.float64), max(1, side // 96)
    across = np.abs(np.roll(values, -step, 1) - np.roll(values, step, 1))
    down = np.abs(np.roll(values, -step, 0) - np.roll(values, step, 0))
    strength = (across + down).max(-1)
    strength[:step] = strength[-step:] = strength[:, :step] = strength[:, -step:] = 0
    return np.asarray(np.clip(strength / 70, 0, 1))


def to_image(values: Floats) -> Image.Image:
    """A float array (side, side, 3) as an RGB image."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def flat(layers: Layers, rng: random.Random) -> Image.Image:
    """Plain colours with a thin outline."""
    return layers.flat()


def sketch(layers: Layers, rng: random.Random) -> Image.Image:
    """Grey pencil lines and slight hatching on paper; shows no colour."""
    side = layers.scene.width
    alpha = np.asarray(layers.object.getchannel("A"), dtype=np.float64) / 255
    lines = np.maximum(edges(layers.flat()) * (1 - 0.45 * (1 - alpha)), 0)
    rows, columns = np.mgrid[0:side, 0:side]
    hatching = ((rows + columns) % max(4, side // 16) < max(1, side // 64)) * alpha
    value = 250 - 200 * lines - 26 * hatching
    return to_image(np.stack([value, value, value - 5], -1))


def blueprint(layers: Layers, rng: random.Random) -> Image.Image:
    """White lines on blue paper with a grid; shows no colour."""
    side = layers.scene.width
    alpha = np.asarray(layers.object.getchannel("A"), dtype=np.float64) / 255
    lines = (edges(layers.flat()) * (1 - 0.45 * (1 - alpha)))[..., None]
    paper = np.full((side, side, 3), (26.0, 74.0, 156.0))
    step, width = side // 8, max(1, side // 64)
    for k in range(width):
        paper[k::step] = (60, 108, 186)
        paper[:, k::step] = (60, 108, 186)
    return to_image(paper * (1 - lines) + np.array((232.0, 242.0, 255.0)) * lines)


def neon(layers: Layers, rng: random.Random) -> Image.Image:
    """Glowing tubes in the object's colour on a dark wall, the scene in dim ones."""
    side = layers.scene.width
    alpha = np.asarray(layers.object.getchannel("A"), dtype=np.float64)[..., None] / 255
    bright = np.array(layers.colour, dtype=np.float64)
    bright = bright * 255 / bright.max()
    tubes = edges(layers.flat())[..., None] * np.where(alpha > 0.5, 1.0, 0.5)
    hues = np.asarray(layers.scene, dtype=np.float64)
    hues = hues * 255 / np.maximum(hues.max(-1, keepdims=True), 1)
    light = tubes * (alpha * bright + (1 - alpha) * hues)
    wall = np.array((16.0, 10.0, 32.0)) * (1 - tubes) + 0.28 * alpha * bright
    picture = to_image(wall + light)
    return ImageChops.add(picture, to_image(light).filter(ImageFilter.GaussianBlur(side / 28)))


def pixel(layers: Layers, rng: random.Random) -> Image.Image:
    """Sixteen by sixteen blocks; the object's silhouette stays hard."""
    side = layers.scene.width
    small = layers.scene.resize((16, 16), Image.Resampling.BOX)
    blocks = layers.flat().resize((16, 16), Image.Resampling.BOX)
    cover = layers.object.getchannel("A").resize((16, 16), Image.Resampling.BOX)
    inside = np.where(np.asarray(cover)[..., None] > 110, np.asarray(blocks), np.asarray(small))
    return Image.fromarray(inside).resize((side, side), Image.Resampling.NEAREST)


def oil(layers: Layers, rng: random.Random) -> Image.Image:
    """Two layers of slanted brush strokes that vary in brightness."""
    image = layers.flat()
    side, source = image.width, np.asarray(image).astype(int)
    canvas = image.filter(ImageFilter.GaussianBlur(side / 64))
    draw = ImageDraw.Draw(canvas)
    for length, width, count in ((0.11, 0.042, 240), (0.055, 0.022, 800)):
        for _ in range(count):
            x, y = rng.random() * side, rng.random() * side
            tone, angle = rng.gauss(0, 17), rng.gauss(0.7, 0.45)
            dx, dy = length * side * math.cos(angle) / 2, length * side * math.sin(angle) / 2
            fill = tuple(int(min(255, max(0, v + tone))) for v in source[int(y), int(x)])
            draw.line(
                (x - dx, y - dy, x + dx, y + dy), fill=fill, width=max(1, round(width * side))
            )
    return canvas


PAINTERS: dict[str, Callable[[Layers, random.Random], Image.Image]] = {
    "flat": flat,
    "sketch": sketch,
    "oil": oil,
    "neon": neon,
    "pixel": pixel,
    "blueprint": blueprint,
}
