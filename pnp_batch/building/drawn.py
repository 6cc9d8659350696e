"""The benchmark of the embedded picture world: a number of pairs in, their manifest out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.building.target import Built, Target


def from_world(pairs: int, target: Target) -> Built:
    """So many held-out pairs, drawn: pictures, prompts, captions, masks and the pictures' specs.

    Raises:
        NotBuilt: the target is no Parquet file, the only one that holds pictures.
    """
    from pnp_batch.world.samples import benchmark_manifest

    with TemporaryDirectory() as folder:
        path = Path(folder) / "world.parquet"
        benchmark_manifest(path, pairs)
        with pq.ParquetFile(path) as drawn:
            tables = (pa.Table.from_batches([batch]) for batch in drawn.iter_batches(1_024))
            return target.write_tables(drawn.schema_arrow, tables)
