"""The benchmark of the embedded picture world: a number of pairs in, their manifest out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from pnp_batch.building.target import Built, Target

CAPTION, SOURCE_PROMPT = "source_caption", "source_prompt"


def from_world(pairs: int, target: Target, *, source_prompts: bool = False) -> Built:
    """So many held-out pairs, drawn: pictures, prompts, captions, masks and the pictures' specs.

    Args:
        pairs: how many.
        target: the manifest to write.
        source_prompts: whether the pictures' captions are the rows' source prompts, too.

    Raises:
        NotBuilt: the target is no Parquet file, the only one that holds pictures.
    """
    from pnp_batch.world.samples import benchmark_manifest

    with TemporaryDirectory() as folder:
        path = Path(folder) / "world.parquet"
        benchmark_manifest(path, pairs)
        with pq.ParquetFile(path) as drawn:
            names = {CAPTION: SOURCE_PROMPT} if source_prompts else {}
            columns = [names.get(name, name) for name in drawn.schema_arrow.names]
            schema = pa.schema(
                [field.with_name(n) for field, n in zip(drawn.schema_arrow, columns, strict=True)]
            )
            tables = (
                pa.Table.from_batches([batch]).rename_columns(columns)
                for batch in drawn.iter_batches(1_024)
            )
            return target.write_tables(schema, tables)
