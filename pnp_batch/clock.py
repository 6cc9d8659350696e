"""Times: as records hold them, and as people say them."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """The time, UTC, as `run.json` holds it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Seconds as people say them: `45s`, `12m 05s`, `3h 20m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
