"""Untrusted bytes become a picture.

In: the bytes of one file. Out: an upright 8-bit sRGB picture without metadata, transparency
composited on white. Whatever else happens while hostile bytes are decoded is a `RowError`.
"""

from __future__ import annotations

import io
import struct
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from pnp_batch.errors import ImageTooLarge, ImageUndecodable, RowError
from pnp_batch.source.metered import MeteredBytes
from pnp_batch.source.policy import SourcePolicy, shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")

# Encoders write about ten for a progressive JPEG; each one goes over the whole picture.
_MAX_SCANS = 32

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, policy: SourcePolicy, name: str = "") -> Image.Image:
    """The first frame of an encoded picture, as RGB of its own size.

    Raises `ImageTooLarge` before any pixel is decoded, else `ImageUndecodable`; their messages
    begin with the `name` where there is one.
    """
    try:
        return _decoded(data, policy)
    except RowError as error:
        if not name:
            raise
        raise type(error)(f"{shown(name)}: {error}") from error


def _decoded(data: bytes, policy: SourcePolicy) -> Image.Image:
    if len(data) > policy.max_bytes:
        raise ImageTooLarge(
            f"{len(data)} bytes, more than the limit of {policy.max_bytes}; shrink it"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = MeteredBytes(data)
            with Image.open(file, formats=FORMATS) as image:
                file.in_header = False
                _check_pixels(image, policy)
                _check_scans(image, data, policy)
                image.load()
                return to_rgb(image)
    except RowError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLarge(f"too many pixels to decode; shrink the image ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageUndecodable(f"no picture in one of {', '.join(FORMATS)}; convert it") from error
    # Pillow raises nearly anything on hostile bytes; all of it means that the row has no picture.
    except Exception as error:
        reason = shown(f"{type(error).__name__}: {error}")
        raise ImageUndecodable(f"damaged or unsupported ({reason}); save it again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A new picture: upright 8-bit sRGB without metadata, transparency composited on white.

    Wider values are scaled to 8 bits, an embedded ICC profile is applied, a broken one ignored.
    """
    image.load()  # Pillow turns a TIFF upright itself
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    plain = "L" if image.mode in ("1", "L", "LA") else "RGB"
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    image = _to_srgb(image if image.mode == "CMYK" else image.convert(plain), profile)
    if alpha is not None:
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=alpha)
        image = canvas
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info = {}
    return image


def _check_pixels(image: Image.Image, policy: SourcePolicy) -> None:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise ImageTooLarge(
            f"{width} x {height} pixels, more than the limit of {policy.max_pixels}; "
            "shrink the image"
        )


def _check_scans(image: Image.Image, data: bytes, policy: SourcePolicy) -> None:
    """Refuses a JPEG that goes over its pixels more often than the largest picture would."""
    if image.format not in ("JPEG", "MPO"):
        return
    scans = data.count(b"\xff\xda")
    if scans * image.width * image.height > _MAX_SCANS * policy.max_pixels:
        raise ImageTooLarge(f"{scans} scans of {image.width} x {image.height}; save it again")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    # A picture with broken metadata is still a picture.
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """L, or LA where one value means transparent, of a 16-bit, 32-bit or float picture."""
    values = np.asarray(image)
    numbers = values[np.isfinite(values)]
    low, high = _range(image.mode, float(numbers.min(initial=0)), float(numbers.max(initial=0)))
    with np.errstate(all="ignore"):
        # Halves, as the difference of two floats may be too large for a float.
        scaled = values.astype(np.float32) / 2 - np.float32(low / 2)
        scaled *= np.float32(510 / (high - low))
    grey = np.nan_to_num(np.rint(scaled), nan=0, posinf=255, neginf=0).clip(0, 255)
    result = Image.fromarray(grey.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def _range(mode: str, low: float, high: float) -> tuple[float, float]:
    """The values that become black and white: of the usual ranges the first that holds all."""
    if mode.startswith("I;16"):
        return 0, 65535
    for top in (255, 65535) if mode == "I" else (1, 255, 65535):
        if low >= 0 and high <= top:
            return 0, top
    return low, high


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes):
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")
