"""The first stage: a block's number in, its rows with their guidance images' pixels out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from pnp_batch import source
from pnp_batch.attempts import ATTEMPTS
from pnp_batch.errors import ImageUndecodable, InvalidRow, RowError
from pnp_batch.stages.work import Reading, kind, packed, text

# Many images are read at a time, but one is decoded: at its limit it takes a gigabyte.
_decoding = threading.Lock()
# A row that names an image, the first of those that share it.
Image = Mapping[str, Any]
# Pixels, digest of the file, and what went wrong.
Loaded = tuple[bytes | None, str | None, RowError | None]


def load(table: pa.Table, reading: Reading, control: Any) -> pa.Table:  # noqa: ANN401 - actor handle
    """Reads, decodes and prepares the guidance images of a block, which `table` names by number.

    Adds the columns `pixels` (RGB bytes of the working image, null where there is none),
    `source_sha256`, `error_type` and `error_message`: what fails becomes the row's error. After a
    stop nothing is read any more, and the block goes on without rows. It goes on packed.
    """
    table = ray.get(control.rows.remote(table["block"][0].as_py()))
    if ray.get(control.stopped.remote()):
        table = table.slice(0, 0)
    rows = table.select(["row_id", "guidance", "image", "image_bytes", "problem"]).to_pylist()
    distinct: dict[str, Image] = {}  # rows that share an image share its pixels
    for row in rows:
        if row["problem"] is None:
            distinct.setdefault(row["guidance"], row)
    loaded = _load_all(distinct, reading, control)
    made = [
        (None, None, InvalidRow(row["problem"])) if row["problem"] else loaded[row["guidance"]]
        for row in rows
    ]
    columns = {
        "pixels": pa.array([pixels for pixels, _, _ in made], pa.binary()),
        "source_sha256": pa.array([digest for _, digest, _ in made], pa.string()),
        "error_type": pa.array([kind(error) for _, _, error in made], pa.string()),
        "error_message": pa.array([text(error) for _, _, error in made], pa.string()),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    return packed(table.drop_columns(["image_bytes"]))


def loading(data: Dataset, reading: Reading, control: Any) -> Dataset:  # noqa: ANN401
    """The graph up to here: of a data set of blocks' numbers the loaded rows."""
    return data.map_batches(
        load,  # type: ignore[arg-type]  # its other arguments come from fn_kwargs
        fn_kwargs={"reading": reading, "control": control},
        batch_format="pyarrow",
        batch_size=None,
        # Another share of a CPU than the actors' keeps Ray from fusing loading into them.
        num_cpus=0.5,
    )


def _load_all(
    images: Mapping[str, Image],
    reading: Reading,
    control: Any,  # noqa: ANN401 - an actor handle
) -> dict[str, Loaded]:
    """Loads images side by side; those that a worker died with one by one, as often as allowed."""
    # An image may be loaded for several blocks at once: each has a name for it of its own.
    names = {f"image of row {row['row_id']}": guidance for guidance, row in images.items()}
    verdict = ray.get(control.verdict.remote(list(names)))
    loaded: dict[str, Loaded] = {}
    for name in verdict.killed:
        what = f"reading it killed its worker in each of {ATTEMPTS} attempts"
        loaded[names[name]] = None, None, ImageUndecodable(f"{what}; save the image again")
    for name in (*verdict.alone, *verdict.last):
        ray.get(control.begin.remote([name]))
        loaded[names[name]] = _load(images[names[name]], reading)
        control.end.remote([name])
    if verdict.together:
        ray.get(control.begin.remote(verdict.together))
        with ThreadPoolExecutor(source.READERS) as readers:
            read = readers.map(lambda name: _load(images[names[name]], reading), verdict.together)
            loaded |= {names[n]: one for n, one in zip(verdict.together, read, strict=True)}
        control.end.remote(verdict.together)
    return loaded


def _load(row: Image, reading: Reading) -> Loaded:
    if row["image"] is None and row["image_bytes"] is None:
        return None, None, None  # to be generated
    digest = None
    try:
        data = row["image_bytes"]
        if data is None:
            data = source.read_source(row["image"], reading.policy)
        digest = hashlib.sha256(data).hexdigest()
        with _decoding:
            image = source.decode(data, reading.policy, row["image"] or source.EMBEDDED)
            prepared = source.prepare(image, reading.resolution, reading.fit)
    except RowError as error:
        return None, digest, error
    return prepared.tobytes(), digest, None
