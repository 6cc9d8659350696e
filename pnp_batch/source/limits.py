"""How long one read may take, and how many bytes it may return."""

from __future__ import annotations

import time

from pnp_batch.errors import ImageTooLarge
from pnp_batch.source.policy import SourcePolicy, shown


class Clock:
    """The time that one read may take, over all its steps."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """True when no time is left."""
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds that are left. Raises `TimeoutError` when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def check_bytes(size: int, policy: SourcePolicy, uri: str) -> None:
    """Raises `ImageTooLarge` beyond `policy.max_bytes`."""
    if size > policy.max_bytes:
        raise ImageTooLarge(
            f"{shown(uri)}: more than the limit of {policy.max_bytes} bytes; shrink the image"
        )
