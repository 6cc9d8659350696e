"""A job before it runs: a `RunConfig` in, everything checked that can be without a device.

Reads the manifest, finds the model, looks at what the output already holds, and settles which
rows are to be done. `run`, `plan` and `retry` begin here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import config as configuration
from pnp_batch import manifest, methods, record, results, rows
from pnp_batch.batches import DEFAULT_BATCH_SIZE, with_places
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig, OutputMismatch
from pnp_batch.models import ModelFiles, find, is_directory
from pnp_batch.results import Summary
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
        total: rows asked for.
        recorded: what the output holds of them.
        todo: the rows to do, each with the shape of its batches.
    """

    config: RunConfig
    output: Storage
    model: ModelFiles
    settings: Mapping[str, Any]
    schema: pa.Schema
    policy: SourcePolicy
    total: int
    recorded: Summary
    todo: pa.Table


def prepare(config: RunConfig, *, only_failed: bool = False) -> Job:
    """Checks a job and settles what is to be done.

    Args:
        config: the job.
        only_failed: do the rows recorded as failed, and no others.

    Raises:
        InvalidManifest, InvalidConfig, InvalidModel: the job cannot run.
        OutputMismatch: the output was made with another configuration or from other rows.
    """
    config = _anchored(config)
    methods.get(config.method)
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
    record.refuse_other(output, settings, ignore=unknown)
    every = rows.expand(read, config, methods.names())
    there = results.read(output, ["row_id", "status", "error_type", "error_message", "row_hash"])
    _refuse_foreign(there, every, output)
    asked = every if config.limit is None else every.slice(0, config.limit)
    asked = with_places(asked, config.batch_size or DEFAULT_BATCH_SIZE)
    there = there.filter(pc.is_in(there["row_id"], asked["row_id"].combine_chunks()))
    return Job(
        config=config,
        output=output,
        model=model,
        settings=settings,
        schema=schema,
        policy=policy(config, read.base),
        total=len(asked),
        recorded=results.summarise(there),
        todo=_todo(asked, there, only_failed=only_failed),
    )


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


def _anchored(config: RunConfig) -> RunConfig:
    """The same job with absolute paths, so that `retry` finds it from anywhere."""
    return configuration.with_values(
        config,
        manifest=absolute(config.manifest),
        output=absolute(config.output),
        cache=absolute(config.cache) if config.cache else None,
        model=absolute(config.model) if is_directory(config.model) else config.model,
        allow_root=tuple(absolute(root) for root in config.allow_root),
    )


def _check_steps(config: RunConfig, model: ModelFiles) -> None:
    known = int(model.configs["scheduler"].get("num_train_timesteps", 1000))
    for name, value in (("steps", config.steps), ("inversion_steps", config.inversion)):
        if value > known:
            raise InvalidConfig(
                f"{name} is {value}, but the model was trained with {known} timesteps",
                f"use {configuration.flag(name)} {known} or less",
            )


def _refuse_foreign(there: pa.Table, every: pa.Table, output: Storage) -> None:
    """An output holds the rows of one manifest: one result for each, and no others."""
    if not len(there):
        return
    hint = "use another --output for another manifest"
    ids = every["row_id"].combine_chunks()
    foreign = there.filter(pc.invert(pc.is_in(there["row_id"], ids)))
    if len(foreign):
        shown = ", ".join(map(repr, foreign["row_id"][:SHOWN].to_pylist()))
        raise OutputMismatch(
            f"{output.uri} holds {len(foreign)} rows that this manifest does not have: {shown}",
            hint,
        )
    place = pc.index_in(there["row_id"], ids)
    changed = there.filter(pc.not_equal(there["row_hash"], every["row_hash"].take(place)))
    if len(changed):
        shown = ", ".join(map(repr, changed["row_id"][:SHOWN].to_pylist()))
        raise OutputMismatch(
            f"{len(changed)} rows have changed since {output.uri} recorded them: {shown}", hint
        )


def _todo(asked: pa.Table, there: pa.Table, *, only_failed: bool) -> pa.Table:
    status = results.ERROR if only_failed else results.OK
    matching = there.filter(pc.equal(there["status"], status))["row_id"].combine_chunks()
    chosen = pc.is_in(asked["row_id"], matching)
    return asked.filter(chosen if only_failed else pc.invert(chosen))
