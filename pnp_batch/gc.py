"""What lies in an output and nothing refers to; and what results refer to and is not there.

In: an output. Out: its leftovers, which killed runs leave, and its gaps. A file that is not of a
kind that runs write is nobody's business here and is never named nor touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from pnp_batch import atomic, lease, record, results, shards, sink
from pnp_batch.latents import LatentCache
from pnp_batch.storage import Storage

LATENTS = "latents"
IMAGES = "images"


@dataclass(frozen=True)
class Garbage:
    """The findings.

    Attributes:
        leftovers: relative names of files that nothing refers to.
        missing: ids of rows that are recorded as ok, but whose image is gone.
        busy: whether a run is writing there, so that nobody can tell what is left over.
        deleted: whether the leftovers were removed.
    """

    output: str
    leftovers: tuple[str, ...]
    missing: tuple[str, ...]
    busy: bool = False
    deleted: bool = False


def collect(uri: str, *, delete: bool = False, latents: bool = False) -> Garbage:
    """Looks for leftovers, and removes them if asked.

    Args:
        uri: the output of a run.
        delete: remove them; the output's lease is held meanwhile.
        latents: latents count as leftovers too if no row of this output came from them, although
            another job may use the same cache.

    Raises:
        InvalidConfig: there is no run at `uri`.
        OutputBusy: a run is writing there, whose files nobody may remove.
    """
    output = Storage(uri)
    record.of_run(uri)
    if not delete:
        return _look(output, latents=latents, busy=lease.is_held(output))
    with lease.held(output, wait=False):
        found = _look(output, latents=latents, busy=False)
        # A dead lease has become this one, and goes with it.
        left = tuple(name for name in found.leftovers if name != lease.NAME)
        for name in left:
            output.delete(name)
    return replace(found, leftovers=left, deleted=True)


def _look(output: Storage, *, latents: bool, busy: bool) -> Garbage:
    # Files first, results after them: what is recorded meanwhile is then known to be referred to.
    names = list(output.listing())
    table = results.read(output, ["row_id", "status", "output", "latents_key"])
    made = table.filter(pc.equal(table["status"], results.OK))
    images = made["output"].to_pylist()  # many rows of one shard name it
    kept = {f"{LATENTS}/{LatentCache.name(key)}" for key in table["latents_key"].to_pylist() if key}
    ids = made["row_id"].to_pylist()
    there = set(names)
    kept |= {*images, *(name for name in map(sink.mask_name, ids) if name in there)}
    folders = (IMAGES, sink.MASKS, shards.FOLDER, *([LATENTS] if latents else []))
    return Garbage(
        output.uri,
        () if busy else tuple(name for name in _ours(names, folders) if name not in kept),
        tuple(row_id for name, row_id in zip(images, ids, strict=True) if name not in there),
        busy=busy,
    )


def _ours(names: list[str], folders: tuple[str, ...]) -> Iterator[str]:
    """The files that may be leftovers: temporary ones, a dead lease, and those in `folders`."""
    for name in names:
        known = name == lease.NAME or name.partition("/")[0] in folders
        if known or atomic.is_temporary(name):
            yield name
