"""Image files made to cost much more than they weigh, each with what it must end as.

Fuzzing does not find these: each is a well-formed file whose cost grows faster than its size.
"""

from __future__ import annotations

import struct

from PIL import Image

from tests.faults.watched import PICTURE, TOO_LARGE
from tests.pictures import PNG, picture, png_chunk, png_header, saved

SIZE = 5 * 2**20


def bombs() -> dict[str, tuple[bytes, str]]:
    """By name: the file, and the outcome that is right for it."""
    jpeg, gif = saved(picture(), "JPEG"), saved(picture(mode="P"), "GIF")
    exif = b"\xff\xe1" + struct.pack(">H", 9) + b"Exif\0\0x"
    colours = 13 + 3 * (2 << (gif[10] & 7))
    rationals = struct.pack("<II", 3, 7) * (2 * SIZE // 8)
    floods = {
        "PNG chunks": _flood(PNG, 33, png_chunk(b"abCd")),
        "PNG texts": _flood(PNG, 33, png_chunk(b"tEXt", b"a\0b")),
        "PNG empty data": _flood(PNG, 33, png_chunk(b"IDAT")),
        "JPEG comments": _flood(jpeg, 2, b"\xff\xfe\0\2"),
        "JPEG exif": _flood(jpeg, 2, exif),
        "JPEG fill": _flood(jpeg, 2, b"\xff"),
        "GIF comments": _flood(gif, colours, b"!\xfe\1x\0"),
        "GIF nothing": _flood(gif, colours, b"\0"),
        "TIFF resolutions": _tiff((282, 5, rationals)),
        "TIFF widths": _tiff((256, 3, rationals)),
        "JPEG scans": _scans(),
        "PNG pixels": png_header(7_500, 7_500),  # of which Pillow itself would not complain
        "PNG more pixels": png_header(13_000, 13_000),
        "PNG many pixels": png_header(2**31 - 1, 2**31 - 1),
    }
    largest = saved(Image.new("L", (7_000, 7_000)))  # 49 of the 50 million pixels allowed
    return {
        **{name: (data, TOO_LARGE) for name, data in floods.items()},
        "PNG largest": (largest, PICTURE),
    }


def _flood(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece * (SIZE // len(piece)) + data[at:]


def _tiff(large: tuple[int, int, bytes]) -> bytes:
    """A grey TIFF of 8 x 8 with one tag (number, type, content) that holds far too many values."""
    tags = {n: (3, 1, v) for n, v in ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1))}
    tags |= {273: (4, 1, 0), 278: (3, 1, 8), 279: (4, 1, 64)}
    number, kind, content = large
    length = 8 + 2 + 12 * len({*tags, number}) + 4
    tags[number] = (kind, len(content) // {3: 2, 5: 8}[kind], length)
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def _scans() -> bytes:
    """A progressive JPEG that refines its 16 million pixels a thousand times."""
    jpeg = saved(Image.new("L", (4_000, 4_000), 99), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * 1_000 + jpeg[-2:]
