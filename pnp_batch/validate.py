"""Validation: a manifest in, what a run would say of it out, without a model."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pnp_batch import methods, results, source
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidRow, RowError
from pnp_batch.job import policy
from pnp_batch.listing import EMBEDDED, GENERATED, LINKED, Listing
from pnp_batch.manifest import read
from pnp_batch.results import Failure
from pnp_batch.source import SourcePolicy


@dataclass(frozen=True)
class Validation:
    """What a manifest holds.

    Attributes:
        rows: output rows it asks for.
        images: distinct guidance images (with the prompt they are inverted with).
        embedded, linked, generated: how many of them come as bytes, as a URI, from a prompt.
        extra: the columns that are carried into the results.
        bad: the bad rows by kind, with an example of each.
        opened: distinct images that were opened, None if none were to be.
    """

    rows: int
    images: int
    embedded: int
    linked: int
    generated: int
    extra: tuple[str, ...]
    bad: tuple[Failure, ...]
    opened: int | None = None

    @property
    def bad_rows(self) -> int:
        """Rows that a run would record as errors."""
        return sum(failure.count for failure in self.bad)


def validate(config: RunConfig, *, images: bool = False) -> Validation:
    """Checks a manifest as a run would.

    Args:
        config: the job; of it the manifest, the method and the limits on images count.
        images: open every distinct image too.

    Raises:
        InvalidManifest: a run would refuse it.
    """
    manifest = read(config.manifest)
    results.schema(manifest.extra)
    listing = Listing(manifest, config, methods.KNOWN)
    firsts = np.sort(np.unique(listing.guidance, return_index=True)[1])
    failed: dict[int, RowError] = {}
    if images:
        failed = _opened(listing, firsts, policy(config, manifest.base))
    origins = np.bincount(listing.origin[firsts], minlength=3)
    return Validation(
        rows=len(listing),
        images=len(firsts),
        embedded=int(origins[EMBEDDED]),
        linked=int(origins[LINKED]),
        generated=int(origins[GENERATED]),
        extra=tuple(manifest.extra.names),
        bad=_failures(_bad(listing, failed)),
        opened=len(firsts) if images else None,
    )


def _opened(listing: Listing, firsts: np.ndarray, allowed: SourcePolicy) -> dict[int, RowError]:
    """What is wrong with each guidance image that cannot be used, by the image's number."""
    errors = source.for_each(
        listing.file, firsts, ["image", "image_bytes"], lambda row: _problem(row, allowed)
    )
    found = zip(listing.guidance[firsts].tolist(), errors, strict=True)
    return {image: error for image, error in found if error is not None}


def _problem(row: Mapping[str, Any], allowed: SourcePolicy) -> RowError | None:
    if row["image"] is None and row["image_bytes"] is None:
        return None
    try:
        source.open_image(row["image"], row["image_bytes"], allowed)
    except RowError as error:
        return error
    return None


def _failures(bad: Iterable[tuple[str, str, str]]) -> tuple[Failure, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}
    for kind, row_id, message in bad:
        counts[kind] += 1
        examples.setdefault(kind, (row_id, message))
    return tuple(Failure(kind, count, *examples[kind]) for kind, count in counts.most_common())


def _bad(listing: Listing, failed: Mapping[int, RowError]) -> Iterator[tuple[str, str, str]]:
    """Kind of failure, id and message of each bad row."""
    images = iter(listing.guidance.tolist()) if failed else itertools.repeat(-1)
    for chunk in listing.file.chunks(["row_id", "problem"]):
        rows = (chunk[name].to_pylist() for name in ("row_id", "problem"))
        for row_id, problem, image in zip(*rows, images, strict=False):
            if problem is not None:
                yield InvalidRow.__name__, row_id, problem
            elif image in failed:
                yield type(failed[image]).__name__, row_id, str(failed[image])
