"""The table of a data set: an output in, its translated rows as a stranger may have them out.

The layout is that of Hugging Face's image folders: `file_name` names each row's picture, from where
the table lies. What tells of the machine or of this job's own files is left out.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch import results, shards
from pnp_batch.errors import InvalidConfig
from pnp_batch.source.policy import shown
from pnp_batch.storage import Storage, is_local

PICTURE, GUIDANCE = "file_name", "guidance"
UNTOLD = {
    *("image", "status", "error_type", "error_message", "output", "member"),
    *("latents_key", "seconds", "row_hash", "recorded_at"),
}
# Names whose columns the loader would take for pictures.
_TAKEN = ("image", "images", GUIDANCE)
_TAKEN_ENDS = ("file_name", "file_names")


def table(output: Storage) -> pa.Table:
    """The rows of an output that have a picture, by `row_id`.

    Columns: `file_name`; `guidance`, what the row's guidance image was called, without folders of
    the machine and without what signs a URI; those of the results that tell of row and picture;
    the manifest's own and the scores. A column whose name means something else to the loader gets
    a `_` behind it; one that holds structs is left out.

    Raises:
        InvalidConfig: no row has a picture, or the pictures lie in shards.
    """
    every = results.read(output)
    rows = every.filter(pc.equal(every["status"], results.OK)).sort_by("row_id")
    if not len(rows):
        raise InvalidConfig(
            f"{output.uri} holds no picture yet", "run the job, or `pnp-batch status` tells why"
        )
    if rows["member"].null_count < len(rows):
        raise InvalidConfig(
            f"{output.uri} holds shards, which need no card",
            f"datasets.load_dataset('webdataset', data_files='{output.uri}/{shards.FOLDER}/*.tar')",
        )
    guidance = [None if image is None else _public(image) for image in rows["image"].to_pylist()]
    columns = {PICTURE: rows["output"], GUIDANCE: pa.array(guidance, pa.string())}
    for field in rows.schema:
        if field.name not in UNTOLD and not _holds_structs(field.type):
            columns[_free(field.name, rows.schema.names)] = rows[field.name]
    return pa.table(columns)


def _public(image: str) -> str:
    """What an image was called, as others may know it."""
    if not is_local(image):
        return shown(image)
    return PurePosixPath(image.removeprefix("file://")).name if _anchored(image) else image


def _anchored(path: str) -> bool:
    return path.startswith(("/", "file:", "~")) or ".." in PurePosixPath(path).parts


def _free(name: str, taken: list[str]) -> str:
    """A name that the loader takes for nothing but a column, and that no other column has."""
    while name in _TAKEN or name.endswith(_TAKEN_ENDS):
        name += "_"
        while name in taken:
            name += "_"
    return name


def _holds_structs(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return True
    return pa.types.is_nested(kind) and any(
        _holds_structs(kind.field(i).type) for i in range(kind.num_fields)
    )
