"""Guidance images from strangers: a URI comes in, a square RGB picture of known size goes out.

Nothing that a manifest names is trusted: `read_source` decides where bytes may come from, `decode`
what they may be. Each failure is a `RowError` whose message names the image and what to do.
"""

from pnp_batch.source.picture import FORMATS, decode, to_rgb
from pnp_batch.source.policy import SourcePolicy
from pnp_batch.source.read import read_source
from pnp_batch.source.square import encode, prepare

__all__ = [
    "FORMATS",
    "SourcePolicy",
    "decode",
    "encode",
    "prepare",
    "read_source",
    "to_rgb",
]
