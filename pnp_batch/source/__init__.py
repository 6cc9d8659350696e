"""Guidance images from strangers: a URI comes in, a square RGB picture of known size goes out.

Nothing that a manifest names is trusted: `read_source` decides where bytes may come from, `decode`
what they may be. Each failure is a `RowError` whose message names the image and what to do.
"""

from PIL import Image

from pnp_batch.source.many import READERS, for_each
from pnp_batch.source.picture import FORMATS, decode, to_rgb
from pnp_batch.source.policy import SourcePolicy
from pnp_batch.source.read import read_source
from pnp_batch.source.square import encode, prepare

# What messages call an image that came without a path.
EMBEDDED = "the embedded image"

__all__ = [
    "EMBEDDED",
    "FORMATS",
    "READERS",
    "SourcePolicy",
    "decode",
    "encode",
    "for_each",
    "open_image",
    "prepare",
    "read_source",
    "to_rgb",
]


def open_image(uri: str | None, embedded: bytes | None, policy: SourcePolicy) -> Image.Image:
    """The picture of a row, from the bytes in its manifest or else from what its URI names.

    Raises a `RowError`, as `read_source` and `decode` do.
    """
    data = read_source(uri or "", policy) if embedded is None else embedded
    return decode(data, policy, uri or EMBEDDED)
