"""Which bytes become a picture, upright and within the limits, and what the others end as."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pnp_batch.errors import ImageTooLarge, ImageUndecodable
from pnp_batch.source import (
    FORMATS,
    SourcePolicy,
    decode,
    encode,
    metered,
    open_image,
    prepare,
    to_rgb,
)
from tests.pictures import PNG, picture, pixels, png_chunk, png_header, saved, turned

POLICY = SourcePolicy(base=".")


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format(image_format):
    lossy = image_format in ("JPEG", "WEBP", "AVIF", "GIF")
    result = decode(saved(picture(), image_format), POLICY)
    assert (result.mode, result.size, result.info) == ("RGB", (40, 30), {})
    assert np.abs(pixels(result) - pixels(picture())).mean() < (8 if lossy else 1e-9)


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS", "PDF"])
def test_other_formats_are_refused(image_format):
    with pytest.raises(ImageUndecodable, match="JPEG, PNG"):
        decode(saved(picture(32, 32), image_format), POLICY)


def test_what_is_no_picture():
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for data in (b"", b"\0", b"hello", PNG[:4], svg, b"PK\3\4" + PNG):
        with pytest.raises(ImageUndecodable):
            decode(data, POLICY)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (KeyError("a\nb" + "x" * 5000), ImageUndecodable),
        (RecursionError(), ImageUndecodable),
        (MemoryError(), ImageTooLarge),
    ],
)
def test_whatever_the_decoder_raises_ends_the_row_with_one_line(raised, kind, monkeypatch):
    def fail(_image):
        raise raised

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(kind) as ended:
        decode(PNG, POLICY)
    assert str(ended.value).isprintable()
    assert len(str(ended.value)) < 1000


@pytest.mark.parametrize("image_format", FORMATS)
def test_truncated_pictures(image_format):
    whole = saved(picture(200, 150), image_format)
    with pytest.raises(ImageUndecodable):
        decode(whole[: len(whole) // 2], POLICY)


def test_pixel_limit_holds_before_pixels_are_decoded(monkeypatch):
    assert decode(PNG, SourcePolicy(base=".", max_pixels=1200)).size == (40, 30)
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded.append)
    with pytest.raises(ImageTooLarge, match=r"40 x 30 pixels.*1199"):
        decode(PNG, SourcePolicy(base=".", max_pixels=1199))
    with pytest.raises(ImageTooLarge):
        decode(png_header(13_000, 13_000), POLICY)
    assert loaded == []


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000, 2**31 - 1])
def test_bombs_are_errors_whatever_limit_is_configured(side):
    with pytest.raises(ImageTooLarge):
        decode(png_header(side, side), SourcePolicy(base=".", max_pixels=10**18))


def test_byte_limit_holds_for_embedded_bytes():
    with pytest.raises(ImageTooLarge, match=f"{len(PNG)} bytes"):
        decode(PNG, SourcePolicy(base=".", max_bytes=len(PNG) - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, image_format):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # stored = upright.transpose(...)
    stored = picture()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    result = decode(saved(stored, image_format, exif=turned(orientation)), POLICY)
    assert result.size == (40, 30)
    assert np.abs(pixels(result) - pixels(picture())).mean() < 12
    assert prepare(result, 30, "stretch").getexif().get(0x0112) is None


def test_broken_exif_is_ignored():
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff",
    ):
        assert decode(saved(picture(), "JPEG", exif=exif), POLICY).size == (40, 30)
    text, numbers = b"\0\2\0\0\0\4up!\0", b"\0\3\0\0\0\2\0\x09\0\6"  # where one of 1 to 8 belongs
    for value in (text, numbers, b"\0\3\0\0\0\1\0\x09\0\0"):
        odd = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12" + value + bytes(4)
        assert decode(saved(picture(), "JPEG", exif=odd), POLICY).size == (40, 30)


def test_animations_give_their_first_frame():
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        data = saved(first, image_format, save_all=True, append_images=[second])
        red, _, blue = pixels(decode(data, POLICY)).mean((0, 1))
        assert red > 240
        assert blue < 15


def test_an_archive_behind_a_picture_is_gone_after_encoding():
    polyglot = saved(picture(), "JPEG") + b"PK\3\4 secret archive"
    assert b"PK" not in encode(decode(polyglot, POLICY), "png")


def test_an_unloaded_tiff_is_turned_once():
    with Image.open(io.BytesIO(saved(picture(), "TIFF", exif=turned(6)))) as image:
        assert to_rgb(image).size == (30, 40)


def test_pieces_and_metadata_are_limited():
    flood = png_chunk(b"abCd") * metered.MAX_READS
    with pytest.raises(ImageTooLarge, match="pieces; save"):
        decode(PNG[:33] + flood + PNG[33:], POLICY)
    few = png_chunk(b"abCd") * 1000
    assert decode(PNG[:33] + few + PNG[33:], POLICY).size == (40, 30)
    file = metered.MeteredBytes(bytes(metered.MAX_HEADER_BYTES + 1))
    with pytest.raises(ImageTooLarge, match="metadata; save"):
        file.read(metered.MAX_HEADER_BYTES + 1)


def test_a_picture_is_decoded_as_often_as_encoders_ask():
    jpeg = saved(picture(), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    policy = SourcePolicy(base=".", max_pixels=1200)
    assert decode(jpeg, policy).size == (40, 30)
    with pytest.raises(ImageTooLarge, match="scans of 40 x 30"):
        decode(jpeg[:-2] + scan * 32 + jpeg[-2:], policy)


def test_messages_name_the_image(tmp_path):
    with pytest.raises(ImageUndecodable, match=r"^cats/a\.png: .*convert it"):
        decode(b"hello", POLICY, "cats/a.png")
    with pytest.raises(ImageTooLarge, match=r"^the embedded image: .*shrink"):
        open_image(None, PNG, SourcePolicy(base=".", max_bytes=10))
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(ImageUndecodable, match=r"^a\.png: "):
        open_image("a.png", None, SourcePolicy(base=str(tmp_path)))
