"""Pictures of any shape become the square that a model works on, and pictures become files.

In: an RGB picture. Out: an N x N RGB picture, or the bytes of an image file. Both depend on
nothing but the picture and the arguments.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.source.picture import to_rgb

# Without the gap a picture of 1 x 50,000,000 pixels would need gigabytes of filter weights. It
# changes nothing up to six times the resolution.
_REDUCING_GAP = 3.0

_SAVE: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "quality": 75, "method": 4},
}


def prepare(image: Image.Image, resolution: int, fit: str) -> Image.Image:
    """The N x N picture of `fit`: `crop`, `stretch` or `pad` (with white). N x N stays as it is.

    Raises `InvalidConfig` for another `fit`.
    """
    if fit not in _FITS:
        raise InvalidConfig(f"unknown fit {fit!r}", did_you_mean(fit, _FITS))
    return _FITS[fit](to_rgb(image), resolution)


def encode(image: Image.Image, image_format: str, carried: Mapping[str, Any] = {}) -> bytes:
    """The bytes of a `png` or `webp` (both lossless) or `jpg` file.

    `carried` is what Pillow's `save` takes for metadata of that format; without it there is none.
    Raises `InvalidConfig` for another format.
    """
    if image_format not in _SAVE:
        hint = did_you_mean(image_format, _SAVE)
        raise InvalidConfig(f"unknown image format {image_format!r}", hint)
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, **_SAVE[image_format], **carried)
    return buffer.getvalue()


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    left, top, right, bottom = box or (0, 0, *image.size)
    if (right - left, bottom - top) == size:
        return image.crop((left, top, right, bottom))
    return image.resize(size, Image.Resampling.LANCZOS, (left, top, right, bottom), _REDUCING_GAP)


def _crop(image: Image.Image, n: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _resized(image, (n, n), (left, top, left + side, top + side))


def _stretch(image: Image.Image, n: int) -> Image.Image:
    return _resized(image, (n, n))


def _pad(image: Image.Image, n: int) -> Image.Image:
    longest = max(image.size)
    width, height = (max(1, round(side * n / longest)) for side in image.size)
    square = Image.new("RGB", (n, n), "white")
    square.paste(_resized(image, (width, height)), ((n - width) // 2, (n - height) // 2))
    return square


_FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "crop": _crop,
    "stretch": _stretch,
    "pad": _pad,
}
