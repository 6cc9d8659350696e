"""Pictures and image files to test with: drawn, saved, and made odd in every way formats allow."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Smooth, asymmetric in both axes."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def with_alpha(mode: str = "RGBA") -> Image.Image:
    """A picture whose left quarter is clear and whose second quarter is half transparent."""
    image = picture().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 30))
    alpha.paste(128, (10, 0, 20, 30))
    image.putalpha(alpha)
    return image.convert(mode)


def saved(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    """The values as numbers that may become negative."""
    return np.asarray(image).astype(int)


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how the picture is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def swapped_profile() -> bytes:
    """An ICC profile whose effect is plain: sRGB with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = bytes(12)  # the time of day
    count = struct.unpack_from(">I", data, 128)[0]
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG file."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            png_chunk(b"IHDR", head),
            png_chunk(b"IDAT", zlib.compress(bytes(5000))),
            png_chunk(b"IEND"),
        )
    )


PNG = saved(picture())
