"""A manifest that another one is made of: its rows in, as that one has them in its folder, out.

Every row keeps its id, hence its picture. Large manifests pass through some rows at a time.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.building.counts import guidance
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt
from pnp_batch.manifest import LISTED, Manifest
from pnp_batch.manifest.places import kind_of
from pnp_batch.rows import identified
from pnp_batch.storage import absolute


class Whole:
    """A manifest's rows as those made of it in another folder have them.

    Args:
        manifest: the whole.
        folder: where those will lie.

    Attributes:
        kind: the format of the whole.
        embeds: whether it holds images.
        pictures: the images below its folder.
    """

    def __init__(self, manifest: Manifest, folder: str) -> None:
        self._manifest = manifest
        self._moves = absolute(folder) != manifest.base
        self._place = lru_cache(100_000)(self._moved)
        self.pictures = Pictures(manifest.base, folder)
        kinds = [file.parsed.schema for file in manifest.files]
        self.kind = kind_of(manifest.files[0].where) or "parquet"
        self.embeds = any(pa.types.is_struct(kind.field("image").type) for kind in kinds)
        lists = {_is_list(kind.field("prompt").type) for kind in kinds}
        # JSON Lines tells row by row.
        self._lists = None if self.kind == "jsonl" else lists == {True}
        if len(lists) > 1 and self._lists is not None:
            raise NotBuilt(
                f"{manifest.uri}: some of its files have lists of prompts, some have not",
                "split or sample them one by one",
            )

    def rows(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """All rows with their ids, checked, and a number that names the guidance image of each."""
        for batch, ids in identified(self._manifest):
            own = {name: batch[name] for name in batch.schema.names if name != "row_id"}
            table = pa.table({"row_id": pa.array(ids, pa.string()), **own})
            yield table, guidance(table)[0]

    @cached_property
    def schema(self) -> pa.Schema:
        """Of what is made: of the whole, with `row_id`."""
        fields = [field for field in self._manifest.schema if field.name != "row_id"]
        schema = pa.schema([("row_id", pa.string()), *fields])
        return self._as_given(schema.empty_table()).schema

    def restored(self, table: pa.Table) -> pa.Table:
        """Checked rows as they were before, their images named from the new folder."""
        return self._as_given(table).cast(self.schema)

    def placed(self, table: pa.Table) -> pa.Table:
        """Checked rows, their images named from the new folder."""
        place = table.schema.get_field_index("image")
        return table.set_column(place, "image", self._images(table["image"]))

    def _as_given(self, table: pa.Table) -> pa.Table:
        moved = self.placed(table)
        columns = {name: moved[name] for name in moved.column_names}
        if self._lists is not None:
            del columns[LISTED]
            if not self._lists:
                columns["prompt"] = pc.list_element(table["prompt"], 0)
        return pa.table(columns)

    def _images(self, column: pa.ChunkedArray) -> pa.Array:
        images = column.combine_chunks()
        paths, data = (pc.struct_field(images, part) for part in ("path", "bytes"))
        if self._moves:
            told = zip(paths.to_pylist(), pc.is_null(data).to_pylist(), strict=True)
            moved = [self._place(path) if path and alone else path for path, alone in told]
            paths = pa.array(moved, pa.string())
        if not self.embeds:
            return paths
        return pa.StructArray.from_arrays([data, paths], names=["bytes", "path"])

    def _moved(self, path: str) -> str:
        if "://" in path:
            return path
        try:
            return self.pictures.reference(path)
        except NotBuilt:  # another root's, or a bad row, which stays one
            return posixpath.join(self._manifest.base, path)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
