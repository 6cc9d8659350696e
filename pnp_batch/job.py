"""A job before it runs: a `RunConfig` in, everything checked that can be without a device.

Reads the manifest, finds the model, looks at what the output already holds, and settles which
rows are to be done. `run`, `plan` and `retry` begin here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pnp_batch import config as configuration
from pnp_batch import manifest, methods, parameters, record, results
from pnp_batch.batches import DEFAULT_BATCH_SIZE, Places, places
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig, OutputMismatch, did_you_mean
from pnp_batch.listing import Listing
from pnp_batch.models import ModelFiles, find, is_directory
from pnp_batch.option import flag
from pnp_batch.process import trim_memory
from pnp_batch.record import Record
from pnp_batch.results import Recorded, Summary
from pnp_batch.source import SourcePolicy
from pnp_batch.storage import Storage, absolute

# Known only on the machine that computes.
OF_DEVICE = ("device", "dtype")
SHOWN = 3


@dataclass(frozen=True)
class Job:
    """A checked job.

    Attributes:
        config: with absolute paths.
        output: where it writes.
        model: the model's files.
        settings: what shapes the pictures; `device` and `dtype` may still be `auto`.
        schema: of the results.
        policy: where guidance images may come from.
        listing: the rows of the manifest.
        places: of the rows asked for, which are the first ones of the listing,
        batch_size: in batches of so many.
        recorded: what the output holds of them.
        todo: indices of the rows to do.
        earlier: the record of the run before, None if there was none.
    """

    config: RunConfig
    output: Storage
    model: ModelFiles
    settings: Mapping[str, Any]
    schema: pa.Schema
    policy: SourcePolicy
    listing: Listing
    places: Places
    batch_size: int
    recorded: Summary
    todo: np.ndarray
    earlier: Record | None

    @property
    def total(self) -> int:
        """Rows asked for."""
        return len(self.places.share)

    @property
    def spent_seconds(self) -> float:
        """What workers have taken in all runs before."""
        return self.earlier.worker_seconds if self.earlier else 0.0

    @property
    def good(self) -> np.ndarray:
        """Of the rows to do those that no error of their own keeps from it."""
        usable: np.ndarray = self.todo[self.listing.usable[self.todo]]
        return usable

    @property
    def needs_model(self) -> bool:
        """Whether a method of the rows to do does."""
        used = {
            self.listing.recipes[n]["method"] for n in np.unique(self.listing.recipe[self.good])
        }
        return any(methods.get(str(name)).uses_model for name in used)

    def in_batches_of(self, batch_size: int, *, ahead: bool) -> Job:
        """The same job with so many rows in a UNet batch, images of several inverted ahead."""
        if batch_size == self.batch_size and not ahead:
            return self
        placed = _places(self.listing, self.config.limit, batch_size, ahead=ahead)
        return replace(self, places=placed, batch_size=batch_size)


def prepare(config: RunConfig, *, only_failed: bool = False) -> Job:
    """Checks a job and settles what is to be done.

    Args:
        config: the job.
        only_failed: do the rows recorded as failed, and no others.

    Raises:
        InvalidManifest, InvalidConfig, InvalidModel: the job cannot run.
        OutputMismatch: the output was made with another configuration or from other rows.
    """
    config = anchored(config)
    method = methods.get(config.method)
    parameters.resolved(method, config.parameters)
    _check_set(config)
    read = manifest.read(config.manifest)
    schema = results.schema(read.extra)
    model = find(config.model, config.revision)
    _check_steps(config, model)
    settings = {
        **configuration.shaping(config),
        "resolution": model.working_resolution(config.resolution),
        "model_digest": model.digest,
    }
    output = Storage(config.output)
    unknown = tuple(name for name in OF_DEVICE if settings[name] == "auto")
    earlier = record.refuse_other(output, settings, ignore=unknown)
    every = Listing(read, config, methods.KNOWN)
    there = results.recorded(output)
    place = _places_of(there, every, output)[: config.limit]
    asked = np.zeros(len(there) + 1, bool)
    asked[place] = True
    recorded = np.append(~there.ok if only_failed else there.ok, False)[place]
    todo = np.flatnonzero(recorded if only_failed else ~recorded).astype(np.int32)
    summary = there.summary(asked[:-1])
    del there, asked, place, recorded  # as large as the listing's own index
    every.forget_ids()
    trim_memory()
    return Job(
        config=config,
        output=output,
        model=model,
        settings=settings,
        schema=schema,
        policy=policy(config, read.base),
        listing=every,
        places=_places(every, config.limit, config.batch_size or DEFAULT_BATCH_SIZE),
        batch_size=config.batch_size or DEFAULT_BATCH_SIZE,
        recorded=summary,
        todo=todo,
        earlier=earlier,
    )


def _places(every: Listing, limit: int | None, batch_size: int, *, ahead: bool = False) -> Places:
    return places(every.guidance[:limit], every.recipe[:limit], batch_size, ahead=ahead)


def policy(config: RunConfig, base: str) -> SourcePolicy:
    """Where guidance images may come from, and how large they may be."""
    return SourcePolicy(
        base=base,
        roots=config.allow_root,
        hosts=config.allow_host,
        max_bytes=int(config.max_image_mib * 2**20),
        max_pixels=int(config.max_image_mpixels * 1e6),
        read_timeout=config.read_timeout,
    )


def anchored(config: RunConfig) -> RunConfig:
    """The same job with absolute paths, so that `retry` finds it from anywhere."""
    return configuration.with_values(
        config,
        manifest=absolute(config.manifest),
        output=absolute(config.output),
        cache=absolute(config.cache) if config.cache and config.cache_uri else config.cache,
        model=absolute(config.model) if is_directory(config.model) else config.model,
        allow_root=tuple(absolute(root) for root in config.allow_root),
    )


def _check_steps(config: RunConfig, model: ModelFiles) -> None:
    known = int(model.configs["scheduler"].get("num_train_timesteps", 1000))
    for name, value in (("steps", config.steps), ("inversion_steps", config.sampling.inversion)):
        if value > known:
            raise InvalidConfig(
                f"{name} is {value}, but the model was trained with {known} timesteps",
                f"use {flag(name)} {known} or less",
            )


def _check_set(config: RunConfig) -> None:
    given = parameters.set_values(config.set)
    known = methods.added() if given else set()
    for name in given:
        if name not in known:
            near = did_you_mean(name, known) if known else "no method is installed beside our own"
            raise InvalidConfig(f"set: no method has a parameter {name!r}", near)


def _places_of(there: Recorded, every: Listing, output: Storage) -> np.ndarray:
    """Where each listed row is recorded, as an index into `there`; -1 where it is not.

    An output holds the rows of one manifest: one result for each, and no others.

    Raises:
        OutputMismatch: it holds other rows, or rows that have changed since.
    """
    place = np.full(len(every), -1, np.int32)
    if not len(there):
        return place
    near = np.minimum(np.searchsorted(there.ids, every.ids), len(there) - 1)
    found = there.ids[near] == every.ids
    place[found] = near[found]
    hint = "use another --output for another manifest"
    foreign = np.ones(len(there), bool)
    foreign[near[found]] = False
    if foreign.any():
        shown = ", ".join(map(repr, there.names(np.flatnonzero(foreign), SHOWN)))
        raise OutputMismatch(
            f"{output.uri} holds {foreign.sum()} rows that this manifest does not have: {shown}",
            hint,
        )
    changed = near[found & (there.hashes[near] != every.hashes)]
    if len(changed):
        shown = ", ".join(map(repr, there.names(changed, SHOWN)))
        raise OutputMismatch(
            f"{len(changed)} rows have changed since {output.uri} recorded them: {shown}", hint
        )
    return place
