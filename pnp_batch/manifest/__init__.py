"""The manifest: Parquet, CSV or JSON Lines in, checked Arrow batches of one schema out.

Finds the files, checks names and types, and refuses a bad manifest before anything else happens.
What a single row says is judged later, in `rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pnp_batch.errors import InvalidManifest
from pnp_batch.manifest.columns import KNOWN_COLUMNS, LISTED, NUMBER_COLUMNS, PARAMETERS, checked
from pnp_batch.manifest.files import File, parse
from pnp_batch.manifest.places import find
from pnp_batch.storage import Storage

__all__ = ["KNOWN_COLUMNS", "LISTED", "NUMBER_COLUMNS", "PARAMETERS", "Manifest", "read"]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        schema: of its rows, known columns first brought to one type each.
        base: the folder that relative image paths start from.
        uri: where it was found.
        files: what it is made of.
    """

    schema: pa.Schema
    base: str
    uri: str
    files: tuple[File, ...]

    @property
    def extra(self) -> pa.Schema:
        """The columns that are carried into the results untouched."""
        own = (*KNOWN_COLUMNS, LISTED)
        return pa.schema([f for f in self.schema if f.name not in own])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, a batch at a time.

        Raises:
            InvalidManifest: a file is damaged, or holds a value that does not fit its column.
        """
        empty = self.schema.empty_table()
        for file in self.files:
            for table in file.tables():
                fitting = checked(table, file.where)
                whole = pa.concat_tables([empty, fitting], promote_options="default")
                yield from whole.select(self.schema.names).combine_chunks().to_batches()

    @property
    def table(self) -> pa.Table:
        """All its rows, for those who know that they are few."""
        return pa.Table.from_batches(self.batches(), self.schema)


def read(uri: str) -> Manifest:
    """Reads a manifest file, a folder of such files, or a glob.

    Raises:
        InvalidManifest: unreadable, empty, a required column missing, or a column of a wrong type.
    """
    base, names = find(uri)
    storage = Storage(base)
    files = tuple(parse(storage, n, f"{uri}: {n}" if len(names) > 1 else uri) for n in names)
    schemas = [checked(file.parsed.slice(0, 0), file.where).schema for file in files]
    try:
        schema = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise InvalidManifest(
            f"{uri}: its files do not have the same column types: {error}",
            "write them with one schema, or run them one by one",
        ) from error
    if not sum(file.count for file in files):
        raise InvalidManifest(f"{uri}: no rows", "a manifest needs at least one row")
    return Manifest(schema, storage.uri, uri, files)
