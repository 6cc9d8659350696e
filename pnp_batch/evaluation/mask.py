"""Masks as manifests give them in; where a picture may change out, cut as the working image is."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pnp_batch import source
from pnp_batch.errors import RowError
from pnp_batch.evaluation.pair import NO_MASK, NotScored
from pnp_batch.source import SourcePolicy

PIE_SIDE = 512
# Many masks are read at a time, but one is decoded: at its limit it takes a gigabyte.
_decoding = threading.Lock()


def mask_of(
    given: object, policy: SourcePolicy, side: int, fit: str
) -> NDArray[np.bool_] | NotScored:
    """A row's mask as bool (side, side), True where the picture may change.

    Args:
        given: a picture, bright where it may change, in any form that a manifest's `image` has; or
            PIE-Bench's list of starts and lengths over 512 x 512 pixels, row by row.
        policy: where pictures may come from.
        side: of the working image.
        fit: how the guidance image was made square.
    """
    if given is None:
        return NO_MASK
    try:
        data, name = _read(given, policy)
        with _decoding:
            image = data if isinstance(data, Image.Image) else source.decode(data, policy, name)
            prepared = source.prepare(image, side, fit)
    except (RowError, ValueError) as error:
        return NotScored(f"column `mask`: {error}")
    return np.asarray(prepared.convert("L")) >= 128


def _read(given: object, policy: SourcePolicy) -> tuple[bytes | Image.Image, str]:
    """A mask's file or the mask itself, and what messages call it."""
    if isinstance(given, str):
        given = {"path": given}
    if isinstance(given, Mapping):
        path, data = given.get("path"), given.get("bytes")
        return (data or source.read_source(path or "", policy)), path or source.EMBEDDED
    if isinstance(given, Sequence):
        return Image.fromarray(_runs(given)).convert("RGB"), ""
    raise ValueError(f"neither a picture nor a list of runs, but {type(given).__name__}")


def _runs(given: Sequence[Any]) -> NDArray[np.bool_]:
    """PIE-Bench's list as a mask; as in its code the picture's rim belongs to it."""
    size = PIE_SIDE * PIE_SIDE
    whole = all(isinstance(number, int) and 0 <= number <= size for number in given)
    if len(given) % 2 or not whole:
        raise ValueError(f"a list of runs has pairs of start and length in 0..{size}")
    flat = np.zeros(size, bool)
    for start, length in zip(given[::2], given[1::2], strict=True):
        flat[start : start + length] = True
    mask = flat.reshape(PIE_SIDE, PIE_SIDE)
    mask[[0, -1], :] = mask[:, [0, -1]] = True
    return mask
