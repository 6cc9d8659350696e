"""Many images: rows of a listing in, what is made of each of them out.

To read an image is mostly to wait, so threads do it side by side; few of the rows are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from pnp_batch.listing import RowFile

READERS = 8
ROWS_AT_A_TIME = 256
T = TypeVar("T")


def for_each(
    file: RowFile,
    indices: np.ndarray,
    columns: Sequence[str],
    made: Callable[[Mapping[str, Any]], T],
) -> Iterator[T]:
    """What a function makes of these columns of each of these rows, in the order of the indices.

    The function is called by `READERS` threads; what it raises is raised here.
    """
    with ThreadPoolExecutor(READERS) as readers:
        for begun in range(0, len(indices), ROWS_AT_A_TIME):
            rows = file.take(indices[begun : begun + ROWS_AT_A_TIME], columns)
            yield from readers.map(made, rows.to_pylist())
