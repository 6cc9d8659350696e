"""The scenes: each paints a square background; lines alone tell them apart, too."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from pnp_batch.world.spec import RGB


def sky(side: int, top: RGB, bottom: RGB) -> Image.Image:
    """A vertical gradient of ``side`` x ``side`` pixels."""
    ramp = np.linspace(0, 1, side)[:, None, None]
    rows = (1 - ramp) * np.array(top) + ramp * np.array(bottom)
    return Image.fromarray(np.repeat(rows, side, axis=1).astype(np.uint8))


def ground(draw: ImageDraw.ImageDraw, side: int, horizon: float, fill: RGB) -> None:
    """Fills everything below the horizon, a fraction of the side."""
    draw.rectangle((0, horizon * side, side, side), fill=fill)


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: RGB) -> None:
    """A disc in pixels."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def grass(side: int, rng: random.Random) -> Image.Image:
    """A blue sky with two clouds over a meadow with tufts."""
    image = sky(side, (96, 170, 245), (196, 228, 252))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.6, 0.72)
    for _ in range(2):
        x, y = rng.random() * side, rng.uniform(0.08, 0.25) * side
        for k in (-1, 0, 1):
            disc(draw, x + k * 0.06 * side, y + abs(k) * 0.015 * side, 0.05 * side, (246, 250, 255))
    ground(draw, side, horizon, (104, 186, 74))
    for _ in range(9):
        x, y = rng.random() * side, rng.uniform(horizon + 0.08, 1) * side
        for k in (-1, 0, 1):
            points = (x, y, x + k * 0.025 * side, y - 0.06 * side)
            draw.line(points, fill=(52, 124, 44), width=max(1, side // 64))
    return image


def snow(side: int, rng: random.Random) -> Image.Image:
    """A grey sky full of flakes over white hills."""
    image = sky(side, (150, 176, 208), (200, 216, 232))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.6, 0.72)
    for x, radius in ((rng.random() * 0.4, 0.4), (0.6 + rng.random() * 0.4, 0.5)):
        disc(draw, x * side, (horizon + radius - 0.06) * side, radius * side, (226, 234, 244))
    ground(draw, side, horizon + 0.06, (248, 250, 254))
    for _ in range(20):
        disc(draw, rng.random() * side, rng.random() * 0.66 * side, 0.018 * side, (255, 255, 255))
    return image


def night(side: int, rng: random.Random) -> Image.Image:
    """A dark sky with stars and a crescent moon."""
    image = sky(side, (14, 18, 62), (44, 52, 122))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.66, 0.76)
    for _ in range(16):
        x, y = rng.random() * side, rng.random() * horizon * side
        disc(draw, x, y, rng.uniform(0.008, 0.016) * side, (250, 246, 205))
    x, y = rng.choice((0.13, 0.87)) * side, rng.uniform(0.12, 0.2) * side
    disc(draw, x, y, 0.09 * side, (252, 246, 200))
    disc(draw, x + 0.045 * side, y - 0.02 * side, 0.08 * side, (18, 23, 68))
    ground(draw, side, horizon, (22, 34, 52))
    return image


def sea(side: int, rng: random.Random) -> Image.Image:
    """A pale sky over water with rows of waves."""
    image = sky(side, (130, 206, 252), (226, 244, 254))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.56, 0.68)
    ground(draw, side, horizon, (22, 100, 178))
    phase = rng.random() * 2 * math.pi
    for k in range(3):
        y = (horizon + (k + 0.6) * (1 - horizon) / 3.2) * side
        xs = range(-side // 32, side + side // 16, max(1, side // 32))
        points = [(x, y + 0.02 * side * math.sin(32 * x / side + phase + k)) for x in xs]
        draw.line(points, fill=(140, 202, 240), width=max(1, side // 48))
    return image


def sunset(side: int, rng: random.Random) -> Image.Image:
    """A purple to orange sky with a large sun on the horizon."""
    image = sky(side, (92, 48, 130), (255, 150, 70))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.62, 0.72)
    x = rng.choice((0.16, 0.84)) * side
    disc(draw, x, (horizon - 0.13) * side, 0.16 * side, (255, 224, 110))
    ground(draw, side, horizon, (98, 48, 66))
    return image


def desert(side: int, rng: random.Random) -> Image.Image:
    """A hazy sky over sand with a dune and a cactus."""
    image = sky(side, (138, 198, 240), (252, 230, 180))
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.6, 0.7)
    dune = rng.random() * side
    draw.ellipse(
        (dune - 0.5 * side, (horizon - 0.08) * side, dune + 0.5 * side, side), fill=(214, 168, 96)
    )
    ground(draw, side, horizon + 0.03, (232, 194, 118))
    x, y, w = rng.choice((0.1, 0.9)) * side, (horizon + 0.06) * side, 0.022 * side
    green = (70, 130, 70)
    draw.rectangle((x - w, y - 0.3 * side, x + w, y), fill=green)
    for turn, height in ((-1, 0.12), (1, 0.17)):
        arm = x + turn * 0.065 * side
        left, right = sorted((x, arm))
        draw.rectangle(
            (left - w, y - height * side, right + w, y - height * side + 2 * w), fill=green
        )
        draw.rectangle((arm - w, y - (height + 0.1) * side, arm + w, y - height * side), fill=green)
    return image


PAINTERS: dict[str, Callable[[int, random.Random], Image.Image]] = {
    "grass": grass,
    "snow": snow,
    "night": night,
    "sea": sea,
    "sunset": sunset,
    "desert": desert,
}
