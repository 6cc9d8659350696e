"""The columns of a manifest: a table as it is in its file in, one of checked columns out."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from pnp_batch.errors import InvalidManifest, did_you_mean

TEXT_COLUMNS = ("row_id", "negative_prompt", "source_prompt", "method")
NUMBER_COLUMNS = ("guidance_scale", "pnp_f_t", "pnp_attn_t", "strength")
PARAMETERS = "parameters"
"""Any others of the row's method: a struct, or a JSON object as text."""
KNOWN_COLUMNS = ("image", "prompt", *TEXT_COLUMNS, "seed", *NUMBER_COLUMNS, PARAMETERS)
# All images of a manifest together may well be more than the 2 GiB of a plain binary array.
IMAGE_TYPE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
# A checked table holds every prompt as a list; this column says which were lists to begin with.
LISTED = "prompt was a list"


def checked(table: pa.Table, where: str) -> pa.Table:
    """Checks names and types and brings the known columns to one type each.

    Raises `InvalidManifest`, whose message begins with `where`.
    """
    for name in ("image", "prompt"):
        if name not in table.column_names:
            near = did_you_mean(name, table.column_names) if table.column_names else "it has none"
            raise InvalidManifest(
                f"{where}: column {name!r} is missing (columns: {', '.join(table.column_names)})",
                f"every manifest needs the columns image and prompt; {near}",
            )
    repeated = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if repeated:
        raise InvalidManifest(f"{where}: column {repeated[0]!r} appears twice", "rename one")
    columns = {name: _column(table, name, where) for name in table.column_names}
    prompts = _listed(columns["prompt"], where)
    return pa.table(
        {**columns, "prompt": prompts["prompt"], LISTED: columns.get(LISTED, prompts[LISTED])}
    )


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if name in ("image", "prompt") or name not in KNOWN_COLUMNS:
        return _image(column, where) if name == "image" else column
    if pa.types.is_null(column.type):
        return column.cast(_wanted(name))
    if name == PARAMETERS and pa.types.is_struct(column.type):
        return _as_json(column)
    fits = {
        pa.string(): _is_text,
        pa.int64(): pa.types.is_integer,
        pa.float64(): lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
    }[_wanted(name)]
    if not fits(column.type):
        raise _wrong_type(name, column.type, _wanted(name), where)
    try:
        return column.cast(_wanted(name))
    except pa.ArrowInvalid as error:
        raise InvalidManifest(
            f"{where}: column {name!r} holds a value out of range: {error}", "mend that value"
        ) from error


def _as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A struct's values as JSON objects, without those that are null."""
    told = (
        None if row is None else {n: v for n, v in row.items() if v is not None}
        for row in column.to_pylist()
    )
    texts = [None if not row else json.dumps(row, sort_keys=True, default=str) for row in told]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _wanted(name: str) -> pa.DataType:
    if name == "seed":
        return pa.int64()
    return pa.float64() if name in NUMBER_COLUMNS else pa.string()


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _wrong_type(name: str, kind: pa.DataType, wanted: object, where: str) -> InvalidManifest:
    return InvalidManifest(
        f"{where}: column {name!r} has type {kind}, expected {wanted}", "cast the column"
    )


def _image(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Images as struct{bytes, path}, whichever of the two layouts came in."""
    kind = column.type
    if pa.types.is_null(kind) or _is_text(kind):
        paths = column.cast(pa.string())
        empty = pa.nulls(len(column), IMAGE_TYPE.field("bytes").type)
        parts = [empty, paths.combine_chunks()]
    elif pa.types.is_struct(kind):
        parts = [_image_part(column, part, where) for part in IMAGE_TYPE.names]
    else:
        raise _wrong_type("image", kind, "string or struct{bytes: binary, path: string}", where)
    return pa.chunked_array([pa.StructArray.from_arrays(parts, names=IMAGE_TYPE.names)])


def _image_part(column: pa.ChunkedArray, part: str, where: str) -> pa.Array:
    index = column.type.get_field_index(part)
    wanted = IMAGE_TYPE.field(part).type
    if index < 0:
        return pa.nulls(len(column), wanted)
    values = pc.struct_field(column, index)
    fits = _is_bytes if part == "bytes" else _is_text
    if not (pa.types.is_null(values.type) or fits(values.type)):
        raise _wrong_type(f"image.{part}", values.type, wanted, where)
    return values.cast(wanted).combine_chunks()


def _listed(column: pa.ChunkedArray, where: str) -> dict[str, pa.Array]:
    """Prompts as lists, and whether each was given as one."""
    kind = column.type
    if pa.types.is_null(kind) or _is_text(kind):
        texts = column.cast(pa.string()).combine_chunks()
        offsets = pa.array(range(len(texts) + 1), pa.int32())
        listed = pa.array([False] * len(texts), pa.bool_())
        return {"prompt": pa.ListArray.from_arrays(offsets, texts), LISTED: listed}
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not (_is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise _wrong_type("prompt", kind, "string or list of strings", where)
    lists = column.cast(pa.list_(pa.string())).combine_chunks()
    return {"prompt": lists, LISTED: pc.is_valid(lists)}
