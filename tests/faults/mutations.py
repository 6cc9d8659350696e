"""Image files go wrong: a good file, another one and a seeded die in, a spoilt file out.

Half of the mutations know the parts that a format is made of (chunks, segments, boxes, tags), so
that decoders get past their first checks; the others know nothing.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from random import Random

PNG_START = b"\x89PNG\r\n\x1a\n"
EXTREMES = (
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\1\0\0",
    b"\0\0\0\1",
)


def mutated(data: bytes, other: bytes, dice: Random) -> bytes:
    """One to five mutations of `data`; some of them take something of `other`."""
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        if dice.random() < 0.5:
            data = _rearranged(data, other, dice)
        else:
            data = dice.choice(_BLIND)(data, other, dice)
    return data


def parts(data: bytes) -> list[bytes]:
    """The pieces that a file's format is made of, which joined are the file again."""
    if data.startswith(PNG_START):
        return [PNG_START, *_sized(data, 8, ">I", 12)]
    if data.startswith(b"RIFF"):
        return [data[:12], *_sized(data, 12, "<4xI", 8)]
    if data[4:8] == b"ftyp":
        return _sized(data, 0, ">I", 0)
    if data.startswith(b"\xff\xd8"):
        return [data[:2], *_sized(data, 2, ">xxH", 2)]
    if data[:4] in (b"II*\0", b"MM\0*") and len(data) > 10:
        return _tags(data)
    return [data[i : i + 64] for i in range(0, len(data), 64)] or [data]


def _sized(data: bytes, at: int, layout: str, extra: int) -> list[bytes]:
    """Cuts where each piece's own length says that it ends."""
    found = []
    while at + struct.calcsize(layout) <= len(data):
        size = max(struct.unpack_from(layout, data, at)[0] + extra, 4)
        size += size % 2 if layout == "<4xI" else 0
        found.append(data[at : at + size])
        at += size
    return [*found, data[at:]]


def _tags(data: bytes) -> list[bytes]:
    order = "<" if data.startswith(b"II") else ">"
    start = struct.unpack_from(order + "I", data, 4)[0] + 2
    count = 0
    if start <= len(data):
        count = min(struct.unpack_from(order + "H", data, start - 2)[0], 64)
    cuts = [start + 12 * i for i in range(count + 1)]
    return [data[:start], *(data[a : a + 12] for a in cuts[:-1]), data[cuts[-1] :]]


def _rearranged(data: bytes, other: bytes, dice: Random) -> bytes:
    pieces = parts(data)
    one, two = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    kind = dice.randrange(6)
    if kind == 0:
        pieces[one], pieces[two] = pieces[two], pieces[one]
    elif kind == 1:
        pieces[one:one] = [pieces[two]] * dice.choice((1, 2, 50))
    elif kind == 2:
        del pieces[one]
    elif kind == 3:
        pieces.insert(one, dice.choice(parts(other)))
    else:
        spoil = _extreme if kind == 4 else _flipped
        pieces[one] = spoil(pieces[one], other, dice)
    if data.startswith(PNG_START) and dice.random() < 0.8:
        pieces = [pieces[0], *map(_with_right_checksum, pieces[1:])]
    return b"".join(pieces)


def _with_right_checksum(chunk: bytes) -> bytes:
    if len(chunk) < 12:
        return chunk
    return chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4]))


def _flipped(data: bytes, other: bytes, dice: Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(dice.choice((1, 2, 20)) if spoilt else 0):
        spoilt[dice.randrange(len(spoilt))] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


def _extreme(data: bytes, other: bytes, dice: Random) -> bytes:
    """A number becomes extreme: sizes, counts, offsets and dimensions, mostly near the start."""
    number = dice.choice(EXTREMES)[: dice.choice((1, 2, 4))]
    at = dice.randrange(max(1, min(len(data), dice.choice((8, 32, 200, len(data) + 1)))))
    return data[:at] + number + data[at + len(number) :]


def _truncated(data: bytes, other: bytes, dice: Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _cut_out(data: bytes, other: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 2, 3, 8, 100)) :]


def _repeated(data: bytes, other: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    return (
        data[:at] + data[at : at + dice.choice((4, 50, 300))] * dice.choice((2, 3, 20)) + data[at:]
    )


def _spliced(data: bytes, other: bytes, dice: Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _followed(data: bytes, other: bytes, dice: Random) -> bytes:
    return data + dice.choice((other, _archive(), bytes(1000)))


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("payload.txt"), "hello")
    return buffer.getvalue()


_BLIND = (_flipped, _extreme, _truncated, _cut_out, _repeated, _spliced, _followed)
