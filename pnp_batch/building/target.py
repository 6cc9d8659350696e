"""Where a manifest goes: rows in, one whole file of Parquet, CSV or JSON Lines out."""

from __future__ import annotations

import io
import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pnp_batch import atomic, results
from pnp_batch.building.counts import Counts
from pnp_batch.building.encoding import Encode, encoder
from pnp_batch.building.pictures import Pictures
from pnp_batch.building.refusal import NotBuilt, shown
from pnp_batch.errors import WrongUsage
from pnp_batch.manifest import KNOWN_COLUMNS, LISTED
from pnp_batch.manifest.places import kind_of
from pnp_batch.storage import Storage

ROWS_A_BATCH = 1_024


@dataclass(frozen=True)
class Built:
    """A manifest that was written.

    Attributes:
        manifest: its URI.
        rows: of it.
        images: distinct guidance images that it names or holds.
        generated: distinct guidance images that a run makes from a source prompt.
        outputs: pictures that it asks for.
        allow_root: further folders that `run` and `validate` must be allowed to read.
        notes: what a user should know.
    """

    manifest: str
    rows: int
    images: int
    generated: int
    outputs: int
    allow_root: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """Takes the rows of a manifest, some at a time."""

    counts: Counts
    encode: Encode

    def add(self, table: pa.Table) -> None:
        """Counts and writes some rows. Raises `NotBuilt` where an id was there before."""
        self.counts.add(table)
        self.encode(table)


@dataclass(frozen=True)
class Target:
    """The file to write: `.parquet`, `.csv` or `.jsonl`, local or any fsspec URI.

    Raises:
        NotBuilt: another one is there and is not to be replaced.
        WrongUsage: its ending is no manifest's.
    """

    output: str
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses at once what would fail in the end."""
        if kind_of(self.output) is None:
            raise WrongUsage(
                f"{shown(self.output)}: no known kind of manifest", "use .parquet, .csv or .jsonl"
            )
        if not self.force and self._storage.exists(self._name):
            raise self._taken()

    @property
    def base(self) -> str:
        """The folder that relative paths in the manifest start from."""
        return posixpath.dirname(self.output) or "."

    def write(
        self,
        schema: pa.Schema,
        rows: Iterable[Mapping[str, Any]],
        pictures: Pictures | None = None,
        notes: Iterable[str] = (),
    ) -> Built:
        """Writes rows, some at a time.

        Args:
            schema: of the manifest.
            rows: values by column; a missing one is null.
            pictures: where its images lie.
            notes: what a user should know.

        Raises:
            NotBuilt: there are no rows, two have one id, or the kind of file cannot hold a column.
        """
        tables = (pa.Table.from_pylist(some, schema) for some in _some(rows))
        return self.write_tables(schema, tables, pictures, notes)

    def write_tables(
        self,
        schema: pa.Schema,
        tables: Iterable[pa.Table],
        pictures: Pictures | None = None,
        notes: Iterable[str] = (),
    ) -> Built:
        """Writes tables of a schema. Raises as `write` does."""
        with self.writer(schema) as writer:
            for table in tables:
                writer.add(table)
        return self.built(writer.counts, pictures, notes)

    @contextmanager
    def writer(self, schema: pa.Schema) -> Iterator[Writer]:
        """What takes tables of a schema; the manifest is there when the block has ended.

        Raises as `write` does.
        """
        own = (*KNOWN_COLUMNS, LISTED)
        results.schema(pa.schema([field for field in schema if field.name not in own]))
        with self._opened() as file, encoder(self.output, file, schema) as encode:
            writer = Writer(Counts(self.output), encode)
            yield writer
            if not writer.counts.rows:
                raise NotBuilt(f"{self.output}: there would be no rows", "check what it is made of")

    def built(
        self, counts: Counts, pictures: Pictures | None = None, notes: Iterable[str] = ()
    ) -> Built:
        """What was written."""
        more = list(notes)
        if pictures is not None and pictures.left_out:
            more.append(f"{pictures.left_out} links out of the images' folder were left out")
        root = pictures.allow_root if pictures is not None else None
        return Built(
            manifest=self.output,
            rows=counts.rows,
            images=len(counts.images),
            generated=len(counts.generated),
            outputs=counts.outputs,
            allow_root=(root,) if root else (),
            notes=tuple(more),
        )

    @property
    def _name(self) -> str:
        return posixpath.basename(self.output)

    @property
    def _storage(self) -> Storage:
        return Storage(self.base)

    def _taken(self) -> NotBuilt:
        return NotBuilt(f"{self.output}: is there already", "use another --output, or --force")

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file to write into; it appears whole, or not at all."""
        storage = self._storage
        if storage.is_local:
            path = Path(storage.path(self._name))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic.opened(path, replace=self.force) as file:
                    yield file
            except FileExistsError as error:
                raise self._taken() from error
            except OSError as error:
                raise NotBuilt(
                    f"{self.output}: cannot be written: {error.strerror or error}", "check the path"
                ) from error
            return
        buffer = io.BytesIO()
        yield buffer
        if self.force:
            storage.write(self._name, buffer.getvalue())
        elif not storage.create(self._name, buffer.getvalue()):
            raise self._taken()


def _some(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while some := list(itertools.islice(iterator, ROWS_A_BATCH)):
        yield some
