"""Encoded bytes as a decoder may read them: not in millions of pieces, not mostly metadata.

In: the bytes of one file. Out: a file object. Pillow walks chunks and tags in Python before there
is a picture to measure, which costs hostile files minutes and gigabytes where nothing ends it.
"""

from __future__ import annotations

import io

from pnp_batch.errors import ImageTooLarge

MAX_READS = 100_000
MAX_HEADER_BYTES = 16 * 2**20


class MeteredBytes(io.BytesIO):
    """Bytes whose reads are counted. While `in_header` is true, what they return counts too.

    Reading raises `ImageTooLarge` beyond the limits. To read all that is left costs nothing: what
    does so decodes in C.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.in_header = True
        self._reads = 0
        self._header_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, as every file object reads."""
        data = super().read(size)
        self._reads += 1
        if self.in_header and size is not None and size >= 0:
            self._header_bytes += len(data)
        if self._reads > MAX_READS:
            raise ImageTooLarge(f"in more than {MAX_READS} pieces; save the image again")
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ImageTooLarge(
                f"more than {MAX_HEADER_BYTES} bytes of metadata; save the image without it"
            )
        return data
