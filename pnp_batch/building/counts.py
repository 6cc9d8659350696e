"""What a manifest holds: its tables in, one after another, their counts out."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.building.refusal import NotBuilt, shown


class Counts:
    """Rows, outputs and distinct guidance images; sees to it that ids are unique.

    Args:
        where: the manifest, for messages.
    """

    def __init__(self, where: str) -> None:
        self.rows = self.outputs = 0
        self.images: set[bytes] = set()
        self.generated: set[bytes] = set()
        self._where = where
        self._ids: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Counts some rows. Raises `NotBuilt` where an id was there before."""
        self.rows += len(table)
        prompts = table["prompt"]
        lists = pa.types.is_list(prompts.type)
        self.outputs += pc.sum(pc.list_value_length(prompts)).as_py() or 0 if lists else len(table)
        for row_id in filter(None, _column(table, "row_id")):
            if row_id in self._ids:
                raise NotBuilt(
                    f"{self._where}: two rows have the id {shown(row_id)}", "ids must be unique"
                )
            self._ids.add(row_id)
        for key, is_given in guidance(table):
            (self.images if is_given else self.generated).add(key)


def guidance(table: pa.Table) -> list[tuple[bytes, bool]]:
    """Of each row a hash that names its guidance image, and whether the row has one.

    A guidance image that is to be generated is named by its prompt and its seed; without a seed
    each row's is its own.
    """
    prompts = zip(*(_column(table, n) for n in ("row_id", "seed", "source_prompt")), strict=True)
    found = []
    for image, (row_id, seed, source_prompt) in zip(
        table["image"].to_pylist(), prompts, strict=True
    ):
        told = (image["bytes"] or image["path"]) if isinstance(image, dict) else image
        if told:
            data = told if isinstance(told, bytes) else told.encode("utf-8", "surrogatepass")
        else:
            own = row_id if seed is None else None
            data = json.dumps([own, seed, source_prompt]).encode()
        found.append((hashlib.sha256(data).digest()[:16], bool(told)))
    return found


def _column(table: pa.Table, name: str) -> list[str | None]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)
