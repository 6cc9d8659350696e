"""Manifests: what can be read, what is carried as it is, and what is refused by name."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import manifest
from pnp_batch.errors import EXIT_INVALID, InvalidManifest

TABLE = pa.table({"image": ["a.png", "b.png"], "prompt": ["a cat", "a dog"]})


def prompts(read):
    return read.table["prompt"].to_pylist()


def paths(read):
    return [image["path"] for image in read.table["image"].to_pylist()]


def parquet(path, table=TABLE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def text(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def jsonl(path, *rows):
    return text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def refusal(uri):
    with pytest.raises(InvalidManifest) as refused:
        _ = manifest.read(uri).table
    assert refused.value.exit_code == EXIT_INVALID
    assert refused.value.hint
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_parquet_csv_and_json_lines_say_the_same(tmp_path):
    rows = [{"image": "a.png", "prompt": "a cat"}, {"image": "b.png", "prompt": 'a "dog", wet'}]
    parquet(tmp_path / "m.parquet", pa.Table.from_pylist(rows))
    text(tmp_path / "m.csv", 'image,prompt\na.png,a cat\nb.png,"a ""dog"", wet"\n')
    jsonl(tmp_path / "m.jsonl", *rows)
    for name in ("m.parquet", "m.csv", "m.jsonl"):
        read = manifest.read(str(tmp_path / name))
        assert paths(read) == ["a.png", "b.png"]
        assert prompts(read) == [["a cat"], ['a "dog", wet']]
        assert read.table[manifest.LISTED].to_pylist() == [False, False]
        assert read.base == str(tmp_path)


def test_json_lines_may_mix_a_prompt_and_lists_of_prompts(tmp_path):
    rows = ({"image": "a.png", "prompt": p} for p in ("one", ["two", "three"], None, []))
    read = manifest.read(jsonl(tmp_path / "m.jsonl", *rows))
    assert prompts(read) == [["one"], ["two", "three"], [None], []]
    assert read.table[manifest.LISTED].to_pylist() == [False, True, False, True]


def test_a_parquet_column_of_lists_is_a_column_of_lists(tmp_path):
    table = pa.table({"image": ["a", "b"], "prompt": [["x"], None]})
    read = manifest.read(parquet(tmp_path / "m.parquet", table))
    assert prompts(read) == [["x"], None]
    assert read.table[manifest.LISTED].to_pylist() == [True, False]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_line_of_json_lines(tmp_path, separator):
    prompt = f"a cat{separator}a dog"
    line = json.dumps({"image": "a.png", "prompt": prompt}, ensure_ascii=separator < " ")
    assert prompts(manifest.read(text(tmp_path / "m.jsonl", line + "\r\n"))) == [[prompt]]


def test_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path):
    line = '{"image": "a.png", "prompt": "x"}'
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + f"\n{line}\n\n{line}".encode())
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfimage,prompt\na.png,x\n")
    assert manifest.read(str(tmp_path / "m.jsonl")).table.num_rows == 2
    assert manifest.read(str(tmp_path / "m.csv")).table.num_rows == 1


def test_a_folder_is_all_its_manifests_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "sub/c"):
        parquet(tmp_path / f"{name}.parquet", TABLE.set_column(0, "image", [[name, name]]))
    jsonl(tmp_path / "d.jsonl", {"image": "d", "prompt": "x"})
    parquet(tmp_path / "_hidden.parquet")
    parquet(tmp_path / ".cache" / "x.parquet")
    text(tmp_path / "README.md", "no manifest")
    read = manifest.read(str(tmp_path))
    assert paths(read) == ["a", "a", "b", "b", "d", "sub/c", "sub/c"]
    assert read.base == str(tmp_path)


def test_a_glob_takes_what_it_matches_and_is_relative_to_its_fixed_part(tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        parquet(tmp_path / "data" / f"{name}.parquet", TABLE.set_column(0, "image", [[name] * 2]))
    read = manifest.read(f"{tmp_path}/data/train-*.parquet")
    assert paths(read) == ["train-0", "train-0", "train-1", "train-1"]
    assert read.base == str(tmp_path / "data")
    assert "matches no manifest" in refusal(f"{tmp_path}/data/val-*.parquet")


def test_files_of_one_manifest_may_have_different_columns_but_not_different_types(tmp_path):
    parquet(tmp_path / "a.parquet", TABLE.append_column("label", [["x", "y"]]))
    parquet(tmp_path / "b.parquet")
    assert manifest.read(str(tmp_path)).table["label"].to_pylist() == ["x", "y", None, None]
    parquet(tmp_path / "b.parquet", TABLE.append_column("label", [[True, False]]))
    assert "label" in refusal(str(tmp_path))


def test_images_may_be_embedded_as_hugging_face_datasets_do(tmp_path):
    images = [{"bytes": b"\x89PNG", "path": None}, {"bytes": None, "path": "b.png"}, None]
    for kind in (pa.binary(), pa.large_binary()):
        struct = pa.struct([("bytes", kind), ("path", pa.large_string())])
        table = pa.table({"image": pa.array(images, struct), "prompt": ["x"] * 3})
        read = manifest.read(parquet(tmp_path / "m.parquet", table))
        assert read.table["image"].to_pylist() == [*images[:2], {"bytes": None, "path": None}]


def test_text_columns_may_be_encoded_as_dictionaries(tmp_path):
    words = pa.array(["a", "b"]).dictionary_encode()
    table = pa.table({"image": words, "prompt": words, "negative_prompt": words})
    read = manifest.read(parquet(tmp_path / "m.parquet", table))
    assert (paths(read), prompts(read)) == (["a", "b"], [["a"], ["b"]])


def test_csv_words_stay_words_and_only_an_empty_cell_is_null(tmp_path):
    cells = ["NA", "null", "None", "nan", "true", "7", ""]
    lines = "".join(f"{i}.png,{cell},{cell}\n" for i, cell in enumerate(cells))
    read = manifest.read(text(tmp_path / "m.csv", "image,prompt,source_prompt\n" + lines))
    assert prompts(read) == [["NA"], ["null"], ["None"], ["nan"], ["true"], ["7"], [None]]
    assert read.table["source_prompt"].to_pylist() == [*cells[:-1], None]


def test_csv_cells_may_hold_newlines(tmp_path):
    read = manifest.read(text(tmp_path / "m.csv", 'image,prompt\na.png,"a\nb"\n'))
    assert prompts(read) == [["a\nb"]]


def test_extra_columns_keep_their_values_and_arrow_types(tmp_path):
    when = [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), None]
    extra = pa.table(
        {
            "when": pa.array(when, pa.timestamp("ms", "UTC")),
            "tags": pa.array([["a", "b"], None], pa.list_(pa.string())),
            "box": pa.array([{"x": 1, "y": 2.5}, None]),
            "small": pa.array([1, None], pa.int8()),
            "raw": pa.array([b"\xff", None]),
        }
    )
    table = TABLE
    for name in extra.column_names:
        table = table.append_column(name, extra[name])
    read = manifest.read(parquet(tmp_path / "m.parquet", table))
    assert read.extra.names == extra.column_names
    assert read.table.select(extra.column_names).equals(extra)


WRONG_TYPES = {
    "image": pa.array([1, 2]),
    "prompt": pa.array([1.5, 2.5]),
    "row_id": pa.array([1, 2]),
    "negative_prompt": pa.array([["a"], ["b"]]),
    "source_prompt": pa.array([True, False]),
    "method": pa.array([b"pnp", b"pnp"]),
    "seed": pa.array([1.5, 2.0]),
    "guidance_scale": pa.array(["7.5", "high"]),
    "pnp_f_t": pa.array([True, False]),
    "pnp_attn_t": pa.array([{"x": 1}, {"x": 2}]),
    "strength": pa.array(["a", "b"]),
    "parameters": pa.array([1, 2]),
}


@pytest.mark.parametrize("name", manifest.KNOWN_COLUMNS)
def test_a_column_of_a_wrong_type_is_refused_by_name(tmp_path, name):
    table = TABLE if name not in TABLE.column_names else TABLE.drop_columns([name])
    message = refusal(parquet(tmp_path / "m.parquet", table.append_column(name, WRONG_TYPES[name])))
    assert f"column {name!r} has type" in message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", pa.array([2**63, 1], pa.uint64())),
        ("guidance_scale", pa.array([2**53 + 1, 1])),
        ("image.bytes", pa.array([{"bytes": "text"}] * 2)),
        ("image.path", pa.array([{"path": 3}] * 2)),
        ("prompt", pa.array([[1], [2]])),
    ],
)
def test_values_that_do_not_fit_the_column_are_refused_by_name(tmp_path, name, values):
    column = name.partition(".")[0]
    table = TABLE.drop_columns([column]) if column in TABLE.column_names else TABLE
    assert repr(name) in refusal(
        parquet(tmp_path / "m.parquet", table.append_column(column, values))
    )


@pytest.mark.parametrize("name", ["seed", "guidance_scale", "strength"])
@pytest.mark.parametrize("value", ["x", "true", "1;5"])
def test_a_csv_cell_that_is_no_number_is_refused_with_its_column(tmp_path, name, value):
    uri = text(tmp_path / "m.csv", f"image,prompt,{name}\na,b,1\na,b,{value}\n")
    assert repr(name) in refusal(uri)


def test_numbers_from_csv_have_one_type_each(tmp_path):
    uri = text(tmp_path / "m.csv", "image,prompt,seed,guidance_scale,strength\na,b,5,7,\na,b,,,\n")
    table = manifest.read(uri).table
    assert table["seed"].to_pylist() == [5, None]
    assert table["guidance_scale"].to_pylist() == [7.0, None]
    assert table["strength"].type == pa.float64()


@pytest.mark.parametrize("name", ["image", "prompt"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_missing_column_is_named(tmp_path, name, ending):
    path, other = tmp_path / f"m.{ending}", "prompt" if name == "image" else "image"
    {
        "parquet": lambda: parquet(path, pa.table({other: ["a"], f"{name}s": ["b"]})),
        "csv": lambda: text(path, f"{other},{name}s\na,b\n"),
        "jsonl": lambda: jsonl(path, {other: "a", f"{name}s": "b"}),
    }[ending]()
    message = refusal(str(path))
    assert f"column {name!r} is missing" in message
    assert f"{name}s" in message


def test_a_column_that_appears_twice_is_refused(tmp_path):
    assert "'label'" in refusal(text(tmp_path / "m.csv", "image,prompt,label,label\na,b,c,d\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.csv", ""), ("m.csv", "image,prompt\n"), ("m.jsonl", "\n\n"), ("m.jsonl", "")],
)
def test_no_rows_are_refused(tmp_path, name, content):
    message = refusal(text(tmp_path / name, content))
    assert "no rows" in message or "is missing" in message


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    assert "no rows" in refusal(parquet(tmp_path / "m.parquet", TABLE.slice(0, 0)))


def test_a_damaged_parquet_file_is_refused_by_name_wherever_it_is_damaged(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png"] * 50, "prompt": ["p" * 9] * 50}), sink)
    data = sink.getvalue()
    path = tmp_path / "m.parquet"
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert "m.parquet: cannot be read as parquet" in refusal(str(path))
    for place in range(0, len(data), 5):  # some damage is no damage, the rest has to be refused
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        with contextlib.suppress(InvalidManifest):
            manifest.read(str(path))


def test_a_line_that_is_no_json_object_is_refused_with_its_number(tmp_path):
    good = '{"image": "a", "prompt": "b"}\n'
    for bad in ('{"image": "a",', "[1, 2]", '"text"', "nonsense"):
        assert "line 3" in refusal(text(tmp_path / "m.jsonl", f"{good}\n{bad}\n{good}"))


def test_text_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"image": "a", "prompt": "\xff"}\n')
    (tmp_path / "m.csv").write_bytes(b"image,prompt\na,\xff\n")
    surrogate = text(tmp_path / "s.jsonl", '{"image": "a", "prompt": "\\ud800"}\n')
    for uri in (str(tmp_path / "m.jsonl"), str(tmp_path / "m.csv"), surrogate):
        assert uri in refusal(uri)


def test_json_values_of_mixed_types_are_refused_with_their_column(tmp_path):
    rows = ({"image": "a", "prompt": "b", "label": value} for value in (1, "x"))
    assert "'label'" in refusal(jsonl(tmp_path / "m.jsonl", *rows))


def test_what_is_not_there_or_no_manifest_is_refused(tmp_path):
    assert "no such file" in refusal(str(tmp_path / "absent.csv"))
    assert "no manifest" in refusal(str(tmp_path / "absent"))
    assert "unknown kind of file" in refusal(text(tmp_path / "m.txt", "x"))
    (tmp_path / "empty").mkdir()
    assert "no manifest" in refusal(str(tmp_path / "empty"))


def test_manifests_lie_in_object_stores_too(s3):
    from pnp_batch.storage import Storage

    uri = s3("manifests")
    Storage(uri).write("one/a.csv", b"image,prompt\na.png,x\n")
    Storage(uri).write("one/b.csv", b"image,prompt\nb.png,y\n")
    for name in ("one", "one/*.csv"):
        read = manifest.read(f"{uri}/{name}")
        assert (paths(read), read.base) == (["a.png", "b.png"], f"{uri}/one")
    assert paths(manifest.read(f"{uri}/one/b.csv")) == ["b.png"]
    assert "no such file" in refusal(f"{uri}/one/c.csv")


def test_a_manifest_of_many_embedded_images_is_never_in_memory_as_a_whole(tmp_path):
    place, groups = tmp_path / "m.parquet", 48
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("prompt", pa.string())])
    with pq.ParquetWriter(place, schema) as writer:
        for _ in range(groups):
            one = {"image": {"bytes": os.urandom(2**20), "path": "a.png"}, "prompt": "x"}
            writer.write_table(pa.Table.from_pylist([one], schema))
    found = manifest.read(str(place))
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in found.batches())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == groups
    assert most < groups * 2**20 / 2
