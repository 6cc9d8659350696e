"""Presets: named values of options, those that trade the picture for time and methods' variants.

docs/performance.md has what they cost, and what else was tried and was worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pnp_batch.errors import InvalidConfig, did_you_mean

PRESET = "preset"
PRESETS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"deep_every": 2},
    "fast": {"steps": 20, "deep_every": 2},
    # The three noise levels that papers compare with.
    "sdedit-low": {"method": "sdedit", "strength": 0.5},
    "sdedit-medium": {"method": "sdedit", "strength": 0.7},
    "sdedit-high": {"method": "sdedit", "strength": 0.85},
}


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, and where it names a preset, that one's values for all it leaves open.

    Raises:
        InvalidConfig: there is no such preset.
    """
    rest = dict(given)
    name = rest.pop(PRESET, None)
    if name is None:
        return rest
    if name not in PRESETS:
        raise InvalidConfig(f"preset: unknown value {name!r}", did_you_mean(str(name), PRESETS))
    return {**PRESETS[name], **rest}
