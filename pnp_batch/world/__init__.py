"""The picture world: small drawn pictures with exact masks, captions and attributes."""

from pnp_batch.world.captions import caption
from pnp_batch.world.drawing import Drawing, draw
from pnp_batch.world.spec import COLOURS, OBJECTS, RENDITIONS, SCENES, Spec, random_spec

__all__ = [
    "COLOURS",
    "OBJECTS",
    "RENDITIONS",
    "SCENES",
    "Drawing",
    "Spec",
    "caption",
    "draw",
    "random_spec",
]
