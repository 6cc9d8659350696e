"""The objects: each draws itself with a `Pen` in a square from -1 to 1, in one main colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pnp_batch.world.spec import COLOURS, RGB

Point = tuple[float, float]

DARK: RGB = (40, 34, 34)
LIGHT: RGB = (250, 250, 245)
WOOD: RGB = (112, 72, 40)
GLASS: RGB = (190, 226, 250)
LAMP: RGB = (250, 235, 150)
BEAK: RGB = (250, 160, 40)
STEM: RGB = (60, 140, 60)


@dataclass
class Pen:
    """Draws on a transparent layer in the object's coordinates; ``a`` and ``b`` vary its shape."""

    layer: Image.Image
    centre: Point
    scale: float
    flip: bool
    colour: RGB
    a: float
    b: float

    def __post_init__(self) -> None:
        """Opens the layer for drawing and mixes the two shades of the main colour."""
        self.draw = ImageDraw.Draw(self.layer)
        red, green, blue = self.colour
        self.shade: RGB = (int(red * 0.62), int(green * 0.62), int(blue * 0.62))
        self.tint: RGB = (int(red * 0.65) + 88, int(green * 0.65) + 88, int(blue * 0.65) + 88)

    def at(self, u: float, v: float) -> Point:
        """The pixel position of object coordinates ``(u, v)``."""
        sign = -1 if self.flip else 1
        return self.centre[0] + sign * u * self.scale, self.centre[1] + v * self.scale

    def polygon(self, points: list[Point], fill: RGB) -> None:
        """A filled polygon."""
        self.draw.polygon([self.at(u, v) for u, v in points], fill=fill)

    def box(self, u0: float, v0: float, u1: float, v1: float, fill: RGB) -> None:
        """A filled rectangle between two corners."""
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], fill)

    def disc(self, u: float, v: float, ru: float, rv: float, fill: RGB) -> None:
        """A filled ellipse with its two radii."""
        x, y = self.at(u, v)
        ru, rv = ru * self.scale, rv * self.scale
        self.draw.ellipse((x - ru, y - rv, x + ru, y + rv), fill=fill)

    def dome(self, u: float, v: float, ru: float, rv: float, fill: RGB) -> None:
        """The upper half of an ellipse."""
        x, y = self.at(u, v)
        ru, rv = ru * self.scale, rv * self.scale
        self.draw.pieslice((x - ru, y - rv, x + ru, y + rv), 180, 360, fill=fill)

    def line(self, start: Point, end: Point, fill: RGB, width: float = 0.05) -> None:
        """A straight line of the given relative width."""
        self.draw.line(
            (self.at(*start), self.at(*end)), fill=fill, width=max(1, round(width * self.scale))
        )


def house(p: Pen) -> None:
    """Walls, a roof, a door and two windows; sometimes a chimney."""
    if p.a > 0:
        p.box(0.38, -0.8, 0.6, -0.3, p.shade)
    p.box(-0.7 + p.a, -0.12, 0.7, 0.9, p.colour)
    p.polygon([(-0.95 + p.a, -0.1), (p.a / 2, -0.9 + p.b), (0.95, -0.1)], p.shade)
    p.box(-0.16, 0.35, 0.16, 0.9, WOOD)
    p.box(-0.52, 0.1, -0.26, 0.4, LAMP)
    p.box(0.26, 0.1, 0.52, 0.4, LAMP)


def tree(p: Pen) -> None:
    """A trunk under a fir's triangle or a round crown."""
    p.box(-0.14, 0.2, 0.14, 0.95, WOOD)
    if p.a > 0:
        p.polygon([(-0.75, 0.45), (0, -0.95), (0.75, 0.45)], p.colour)
        p.polygon([(-0.5, -0.05), (0, -0.95), (0.5, -0.05)], p.tint)
        return
    p.disc(0, -0.25, 0.65, 0.62, p.colour)
    p.disc(-0.4, 0.08, 0.38, 0.36, p.colour)
    p.disc(0.42, 0.05, 0.38, 0.36, p.colour)
    p.disc(-0.15, -0.4, 0.27, 0.24, p.tint)


def car(p: Pen) -> None:
    """A side view: cabin with two windows, body, two wheels and a lamp."""
    roof = -0.55 + p.b
    p.polygon([(-0.6, -0.05), (-0.38, roof), (0.32, roof), (0.62, -0.05)], p.shade)
    p.polygon([(-0.44, -0.08), (-0.28, roof + 0.12), (-0.04, roof + 0.12), (-0.04, -0.08)], GLASS)
    p.polygon([(0.06, -0.08), (0.06, roof + 0.12), (0.26, roof + 0.12), (0.46, -0.08)], GLASS)
    p.box(-0.95, -0.08, 0.95 + p.a, 0.42, p.colour)
    for wheel in (-0.52, 0.52):
        p.disc(wheel, 0.44, 0.25, 0.25, DARK)
        p.disc(wheel, 0.44, 0.1, 0.1, LIGHT)
    p.box(0.8 + p.a, 0.02, 0.95 + p.a, 0.16, LAMP)


def boat(p: Pen) -> None:
    """A hull with a mast, a white sail and a tinted one."""
    p.polygon([(-0.95, 0.3), (0.95, 0.3), (0.58, 0.82), (-0.62, 0.82)], p.colour)
    p.box(-0.05, -0.92 + p.b, 0.03, 0.3, WOOD)
    p.polygon([(0.08, -0.88 + p.b), (0.78 + p.a, 0.18), (0.08, 0.18)], p.tint)
    p.polygon([(-0.12, -0.65 + p.b), (-0.64, 0.18), (-0.12, 0.18)], p.colour)


def fish(p: Pen) -> None:
    """A body, tail and back fin, a small fin and an eye."""
    p.polygon([(-0.4, 0), (-0.95, -0.48 + p.a), (-0.95, 0.48 + p.b)], p.shade)
    p.polygon([(-0.15, -0.3), (0.2, -0.8), (0.45, -0.3)], p.shade)
    p.disc(0.12, 0, 0.72, 0.48 + p.a, p.colour)
    p.polygon([(0, 0.05), (-0.3, 0.32), (0.12, 0.26)], p.tint)
    p.disc(0.5, -0.1, 0.13, 0.13, LIGHT)
    p.disc(0.53, -0.1, 0.07, 0.07, DARK)


def cat(p: Pen) -> None:
    """A cat's face: ears, eyes, a nose and whiskers."""
    for side in (-1, 1):
        p.polygon([(side * 0.68, -0.2), (side * 0.62, -0.98), (side * 0.1, -0.5)], p.colour)
        p.polygon([(side * 0.56, -0.4), (side * 0.54, -0.78), (side * 0.27, -0.52)], p.tint)
    p.disc(0, 0.08, 0.74 + p.a, 0.66, p.colour)
    for side in (-1, 1):
        p.disc(side * 0.3, -0.05, 0.15, 0.19, LAMP)
        p.disc(side * 0.3, -0.05, 0.07, 0.16, DARK)
        ink = LIGHT if sum(p.colour) < 200 else DARK
        for v in (0.2, 0.4):
            p.line((side * 0.22, 0.3), (side * 0.95, v), ink)
    p.polygon([(-0.12, 0.2), (0.12, 0.2), (0, 0.34)], (230, 110, 130))


def flower(p: Pen) -> None:
    """A stem with a leaf, five or seven petals around a middle."""
    p.box(-0.06, 0.2, 0.06, 0.98, STEM)
    p.polygon([(0, 0.85), (0.5, 0.5), (0.22, 0.88)], STEM)
    petals = 5 if p.a < 0 else 7
    for k in range(petals):
        angle = 2 * math.pi * k / petals + p.b
        p.disc(0.42 * math.cos(angle), -0.3 + 0.42 * math.sin(angle), 0.27, 0.27, p.colour)
    warm = p.colour[0] > 200 and p.colour[1] > 100 and p.colour[2] < 100
    p.disc(0, -0.3, 0.24, 0.24, WOOD if warm else COLOURS["yellow"])


def mushroom(p: Pen) -> None:
    """A pale stalk under a cap with three light spots."""
    p.polygon([(-0.22, 0), (0.22, 0), (0.3 + p.a, 0.9), (-0.3 - p.a, 0.9)], (244, 230, 206))
    p.dome(0, 0.12, 0.9, 0.9 - p.b, p.colour)
    spot = p.shade if sum(p.colour) > 660 else LIGHT
    for u, v, r in ((-0.45, -0.2, 0.13), (0.08, -0.45, 0.15), (0.48, -0.15, 0.11)):
        p.disc(u, v, r, r, spot)


def rocket(p: Pen) -> None:
    """A body with a nose, two fins, a window and a flame."""
    p.polygon([(-0.3, 0.25), (-0.75, 0.85), (-0.3, 0.7)], p.shade)
    p.polygon([(0.3, 0.25), (0.75, 0.85), (0.3, 0.7)], p.shade)
    p.polygon([(-0.22, 0.7), (0, 1.05), (0.22, 0.7)], BEAK)
    p.box(-0.37, -0.32, 0.37, 0.7, p.colour)
    p.polygon([(-0.37, -0.3), (0, -1.0), (0.37, -0.3)], p.tint if p.a < 0 else p.shade)
    p.disc(0, 0.0, 0.2, 0.2, GLASS)


def balloon(p: Pen) -> None:
    """A hot-air balloon: the envelope with a tinted stripe, two ropes, a basket."""
    p.line((-0.3, 0.2), (-0.16, 0.75), DARK)
    p.line((0.3, 0.2), (0.16, 0.75), DARK)
    p.disc(0, -0.3, 0.67 + p.a, 0.65, p.colour)
    p.polygon([(-0.42, 0.15), (0.42, 0.15), (0.2, 0.5), (-0.2, 0.5)], p.colour)
    p.disc(0, -0.3, 0.22, 0.64, p.tint)
    p.box(-0.22, 0.68, 0.22, 0.98, WOOD)


def castle(p: Pen) -> None:
    """Two pointed towers, a wall with battlements and a gate."""
    p.box(-0.6, -0.1, 0.6, 0.9, p.colour)
    for side in (-0.7, 0.7):
        p.box(side - 0.22, -0.45 + p.a, side + 0.22, 0.9, p.colour)
        p.polygon(
            [(side - 0.3, -0.45 + p.a), (side, -0.98 + p.a), (side + 0.3, -0.45 + p.a)], p.shade
        )
        p.box(side - 0.07, -0.2, side + 0.07, 0.05, DARK)
    for k in range(4):
        p.box(-0.43 + 0.24 * k, -0.28, -0.3 + 0.24 * k, -0.1, p.colour)
    p.dome(0, 0.65, 0.22, 0.3, DARK)
    p.box(-0.22, 0.63, 0.22, 0.9, DARK)


def bird(p: Pen) -> None:
    """A standing bird: tail, body, wing, head, beak, eye and legs."""
    for u in (-0.1, 0.15):
        p.line((u, 0.5), (u, 0.95), BEAK, 0.07)
    p.polygon([(-0.5, 0.0), (-1.0, -0.2 + p.b), (-0.85, 0.28)], p.shade)
    p.disc(-0.05, 0.15, 0.6, 0.44 + p.a, p.colour)
    p.disc(0.45, -0.32, 0.34, 0.32, p.colour)
    p.polygon([(0.72, -0.45), (1.05, -0.27), (0.72, -0.16)], BEAK)
    p.disc(0.52, -0.38, 0.09, 0.09, LIGHT)
    p.disc(0.54, -0.38, 0.05, 0.05, DARK)
    p.polygon([(-0.35, 0.0), (0.25, 0.05), (-0.22, 0.5)], p.shade)


PAINTERS: dict[str, Callable[[Pen], None]] = {
    "house": house,
    "tree": tree,
    "car": car,
    "boat": boat,
    "fish": fish,
    "cat": cat,
    "flower": flower,
    "mushroom": mushroom,
    "rocket": rocket,
    "balloon": balloon,
    "castle": castle,
    "bird": bird,
}
