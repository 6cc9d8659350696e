"""What a manifest holds: its tables in, one after another, their counts out."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.building.refusal import NotBuilt, shown
from pnp_batch.digest import Distinct, digests


class Counts:
    """Rows, outputs and distinct guidance images; sees to it that ids are unique.

    Args:
        where: the manifest, for messages.
    """

    def __init__(self, where: str) -> None:
        self.rows = self.outputs = 0
        self.images, self.generated = Distinct(), Distinct()
        self._where = where
        self._ids = Distinct()

    def add(self, table: pa.Table) -> None:
        """Counts some rows. Raises `NotBuilt` where an id was there before."""
        self.rows += len(table)
        prompts = table["prompt"]
        lists = pa.types.is_list(prompts.type)
        self.outputs += pc.sum(pc.list_value_length(prompts)).as_py() or 0 if lists else len(table)
        ids = [row_id for row_id in _column(table, "row_id") if row_id]
        short = digests(pa.array(ids, pa.string()))
        order = np.argsort(short, kind="stable")
        again = self._ids.has(short)
        again[order[1:]] |= short[order[1:]] == short[order[:-1]]
        for number in np.flatnonzero(again)[:1].tolist():
            raise NotBuilt(
                f"{self._where}: two rows have the id {shown(ids[number])}", "ids must be unique"
            )
        self._ids.add(short)
        keys, is_given = guidance(table)
        self.images.add(keys[is_given])
        self.generated.add(keys[~is_given])


def guidance(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Of each row a 64-bit digest that names its guidance image, and whether the row has one.

    A guidance image that is to be generated is named by its prompt and its seed; without a seed
    each row's is its own.
    """
    prompts = zip(*(_column(table, n) for n in ("row_id", "seed", "source_prompt")), strict=True)
    names, is_given = [], []
    for image, (row_id, seed, source_prompt) in zip(
        table["image"].to_pylist(), prompts, strict=True
    ):
        told = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
        if told:
            data = told if isinstance(told, bytes) else told.encode("utf-8", "surrogatepass")
        else:
            own = row_id if seed is None else None
            data = json.dumps([own, seed, source_prompt]).encode()
        names.append(data)
        is_given.append(bool(told))
    return digests(pa.array(names, pa.binary())), np.array(is_given, bool)


def _column(table: pa.Table, name: str) -> list[str | None]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)
