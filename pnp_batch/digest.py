"""Short digests: texts in, numbers of fixed width out, which many millions of fit into memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

# Texts that are Python's at a time.
AT_A_TIME = 4096


def digests(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The first 64 bits of the sha256 of each text, as uint64 of the same length; nulls are empty.

    Two of a million different texts have one digest once in forty million cases: a listing refuses
    such ids, and nothing else depends on it.
    """
    found = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), AT_A_TIME):
        some = texts.slice(start, AT_A_TIME).cast(pa.binary()).to_pylist()
        joined = b"".join(hashlib.sha256(text or b"").digest()[:8] for text in some)
        found[start : start + len(some)] = np.frombuffer(joined, ">u8")
    return found


class Distinct:
    """A set of 64-bit numbers, which costs eight bytes for each."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted, each about half as long as the one before

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def has(self, values: np.ndarray) -> np.ndarray:
        """Of each number whether it is in the set."""
        known = np.zeros(len(values), bool)
        for run in self._runs:
            place = np.searchsorted(run, values)
            known |= run[np.minimum(place, len(run) - 1)] == values
        return known

    def add(self, values: np.ndarray) -> None:
        """Adds numbers; those that are in the set already change nothing."""
        values = np.unique(values[~self.has(values)])
        while self._runs and len(self._runs[-1]) <= 2 * len(values):
            values = np.union1d(self._runs.pop(), values)
        if len(values):
            self._runs.append(values)
