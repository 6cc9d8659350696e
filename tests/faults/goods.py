"""Good image files to spoil: every allowed format in every mode and with every extra it knows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures import picture, saved, swapped_profile, turned, with_alpha

EXTRAS: dict[str, Any] = {"exif": turned(6).tobytes(), "icc_profile": swapped_profile()}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@cache  # AVIF animations carry the time of day
def good_files() -> dict[str, bytes]:
    """File contents by a name that begins with the format: `PNG palette`."""
    made: dict[str, bytes] = {}
    for writer in (_jpegs, _pngs, _webps, _bmps, _tiffs, _gifs, _avifs):
        made |= writer()
    return made


def _two() -> dict[str, Any]:
    # Drawn anew, as an encoder leaves its settings on the pictures it has saved.
    return {"save_all": True, "append_images": [picture().rotate(180)]}


def _modes(image_format: str, *modes: str) -> dict[str, bytes]:
    alpha = {"LA", "RGBA"}
    drawn = {mode: with_alpha(mode) if mode in alpha else picture(mode=mode) for mode in modes}
    for image in drawn.values():
        image.info.clear()  # a LAB picture carries a profile with the time of day
    return {f"{image_format} {mode}": saved(drawn[mode], image_format) for mode in modes}


def _sixteen_bit(mode: str = "I;16") -> Image.Image:
    ramp = np.linspace(0, 65535, 1200).astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, (40, 30), ramp.tobytes())


def _jpegs() -> dict[str, bytes]:
    return {
        **_modes("JPEG", "L", "RGB", "CMYK"),
        "JPEG extras": saved(picture(), "JPEG", **EXTRAS, progressive=True, comment=b"hello"),
        "JPEG xmp": saved(picture(), "JPEG", xmp=XMP, dpi=(72, 72), restart_marker_blocks=2),
        "JPEG pair": saved(picture(), "MPO", **_two()),
    }


def _pngs() -> dict[str, bytes]:
    clear = b"\0\x80\xff"
    return {
        **_modes("PNG", "1", "L", "LA", "P", "RGB", "RGBA"),
        "PNG 16 bit": saved(_sixteen_bit(), "PNG", transparency=0),
        "PNG palette": saved(picture(mode="P"), "PNG", transparency=clear, bits=8),
        "PNG extras": saved(with_alpha(), "PNG", **EXTRAS, dpi=(72, 72)),
        "PNG animated": saved(picture(), "PNG", **_two()),
    }


def _webps() -> dict[str, bytes]:
    return {
        **_modes("WEBP", "RGB", "RGBA"),
        "WEBP lossless": saved(with_alpha(), "WEBP", lossless=True),
        "WEBP extras": saved(picture(), "WEBP", **EXTRAS, xmp=XMP),
        "WEBP animated": saved(picture(), "WEBP", **_two()),
    }


def _bmps() -> dict[str, bytes]:
    return _modes("BMP", "1", "L", "P", "RGB", "RGBA")


def _tiffs() -> dict[str, bytes]:
    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return {
        **_modes("TIFF", "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F"),
        **{f"TIFF {kind}": saved(picture(), "TIFF", compression=kind) for kind in packed},
        "TIFF fax": saved(picture(mode="1"), "TIFF", compression="group4"),
        "TIFF 16 bit": saved(_sixteen_bit(), "TIFF"),
        "TIFF 16 bit big": saved(_sixteen_bit("I;16B"), "TIFF"),
        "TIFF extras": saved(picture(), "TIFF", **EXTRAS, compression="tiff_lzw"),
        "TIFF pages": saved(picture(), "TIFF", **_two()),
        "TIFF large": saved(picture(), "TIFF", big_tiff=True),
    }


def _gifs() -> dict[str, bytes]:
    palette = picture(mode="P")
    return {
        "GIF P": saved(palette, "GIF", transparency=3, comment=b"hello"),
        "GIF animated": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
    }


def _avifs() -> dict[str, bytes]:
    return {
        **_modes("AVIF", "RGB", "RGBA"),
        "AVIF extras": saved(picture(), "AVIF", **EXTRAS, xmp=XMP),
        "AVIF animated": saved(picture(), "AVIF", **_two()),
    }
