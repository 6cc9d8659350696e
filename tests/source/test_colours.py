"""What every kind of pixel becomes in 8-bit sRGB: wide, float, clear, palette, CMYK, profiled."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from pnp_batch.source import SourcePolicy, decode
from tests.pictures import picture, pixels, saved, swapped_profile, with_alpha

POLICY = SourcePolicy(base=".")


def test_sixteen_bit_keeps_its_range():
    ramp = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    expected = np.rint(ramp / 257).astype(int)
    for image_format in ("PNG", "TIFF"):
        result = pixels(decode(saved(Image.fromarray(ramp), image_format), POLICY))
        assert np.array_equal(result, np.repeat(expected[..., None], 3, -1))
    big_endian = Image.frombytes("I;16B", (40, 30), ramp.astype(">u2").tobytes())
    assert np.array_equal(pixels(decode(saved(big_endian, "TIFF"), POLICY))[..., 0], expected)
    clear = saved(Image.fromarray(ramp), "PNG", transparency=0)
    assert pixels(decode(clear, POLICY))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 255), (0, 65535), (-3, 5), (0, 1e9), (-3e38, 3e38)]
)
def test_float_pictures_keep_their_range(low, high):
    ramp = np.linspace(low, high, 1200, dtype=np.float64).astype(np.float32).reshape(30, 40)
    result = pixels(decode(saved(Image.fromarray(ramp), "TIFF"), POLICY))[..., 0]
    assert np.abs(result - np.linspace(0, 255, 1200).reshape(30, 40)).max() <= 1


def test_odd_numbers_in_float_and_integer_pictures():
    odd = np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], dtype=np.float32)
    result = pixels(decode(saved(Image.fromarray(odd), "TIFF"), POLICY))[0, :, 0]
    assert result.tolist() == [0, 128, 255, 0, 255, 0]
    for value in (-1, 7, np.nan):
        flat = Image.fromarray(np.full((2, 2), value, np.float32))
        assert decode(saved(flat, "TIFF"), POLICY).mode == "RGB"
    for top in (255, 65535, 2**31 - 1):
        ramp = np.linspace(0, top, 256).astype(np.int32).reshape(16, 16)
        result = pixels(decode(saved(Image.fromarray(ramp), "TIFF"), POLICY))[..., 0]
        assert np.abs(result - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "image_format"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG"), ("RGBA", "WEBP")]
)
def test_transparency_is_composited_on_white(mode, image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    result = pixels(decode(saved(with_alpha(mode), image_format, **options), POLICY))
    opaque = pixels(picture().convert("L" if mode == "LA" else "RGB").convert("RGB"))
    assert (result[:, :10] == 255).all()
    assert np.abs(result[:, 10:20] - (opaque[:, 10:20] * 128 + 255 * 127) / 255).max() <= 1.01
    assert np.abs(result[:, 20:] - opaque[:, 20:]).max() <= 1


def test_transparent_colours_and_palettes():
    grey = Image.new("L", (4, 4), 9)
    grey.putpixel((0, 0), 200)
    colour = Image.new("RGB", (4, 4), (9, 9, 9))
    colour.putpixel((0, 0), (200, 200, 200))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 200, 200, 200])
    palette.putpixel((0, 0), 1)
    for data in (
        saved(grey, "PNG", transparency=9),
        saved(colour, "PNG", transparency=(9, 9, 9)),
        saved(palette, "PNG", transparency=0),
        saved(palette, "PNG", transparency=b"\0\xff"),
        saved(palette, "GIF", transparency=0),
    ):
        result = pixels(decode(data, POLICY))
        assert result[0, 0].tolist() == [200, 200, 200]
        assert result[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("1", "PNG"),
        ("P", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
    ],
)
def test_other_colour_modes(mode, image_format):
    result = decode(saved(picture(mode=mode), image_format), POLICY)
    reference = picture().convert("L").convert("RGB") if mode in ("1", "L") else picture()
    assert result.mode == "RGB"
    assert np.abs(pixels(result) - pixels(reference)).mean() < (110 if mode == "1" else 20)


def test_an_embedded_profile_is_applied():
    profile = swapped_profile()
    red, blue = (200, 30, 60), (60, 30, 200)
    for image_format in ("PNG", "TIFF"):
        data = saved(Image.new("RGB", (8, 8), red), image_format, icc_profile=profile)
        assert np.abs(pixels(decode(data, POLICY)) - blue).max() <= 3
    half = Image.new("RGBA", (8, 8), (*red, 255))
    half.putpixel((0, 0), (0, 0, 0, 0))
    result = pixels(decode(saved(half, "PNG", icc_profile=profile), POLICY))
    assert np.abs(result[4, 4] - blue).max() <= 3
    assert result[0, 0].tolist() == [255, 255, 255]


def test_srgb_broken_and_foreign_profiles_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, b"garbage", srgb[:200], swapped_profile()[:300], lab):
        result = decode(saved(picture(), "PNG", icc_profile=profile), POLICY)
        assert np.array_equal(pixels(result), pixels(picture()))
    grey = saved(picture(mode="L"), "PNG", icc_profile=swapped_profile())
    assert np.array_equal(pixels(decode(grey, POLICY))[..., 0], pixels(picture(mode="L")))
