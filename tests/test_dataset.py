"""The card of a data set: what the `datasets` library makes of it, and that it harms no output."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pnp_batch import cli, gc, record, results, sink
from pnp_batch.config import RunConfig
from pnp_batch.dataset.card import write_card
from pnp_batch.errors import InvalidConfig
from pnp_batch.record import Record
from pnp_batch.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "<script>alert(1)</script> | [x](javascript:y) ![](z) `a`\n\n# b --- {{ 7 * 7 }} \x1b\u202e"
)
SECRET = "s3cret"
COLOURS = {"a": "red", HOSTILE: "lime", "web": "blue", "far": "teal"}
IMAGES = {
    "a": "/data/somebody/a.png",
    HOSTILE: "photos/b.png",
    "web": f"https://u:{SECRET}@host/c.png?sig={SECRET}",
    "far": "../../d.png",
}
EXTRA = pa.schema(
    [
        ("split", pa.string()),
        ("mask_file_name", pa.string()),
        ("guidance", pa.int64()),
        ("boxes", pa.list_(pa.struct([("x", pa.int64())]))),
        ("tags", pa.list_(pa.string())),
        ("clip_similarity", pa.float64()),
        ("nothing", pa.null()),
    ]
)


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    """An output of four pictures, one of a hostile row, and a failed row."""
    output = Storage(str(tmp_path / "my out"))
    config = RunConfig("m.csv", output.uri, model="/data/somebody/models/sd").as_dict()
    settings = {"model_digest": "d1", "steps": 4, "negative_prompt": HOSTILE, "provenance": True}
    record.write(output, Record(config, settings, rows=5, versions={"pnp-batch": "0.1.0"}))
    told = [
        {"row_id": name, "image": IMAGES[name], "prompt": f"{name} cat", "method": "pnp"}
        | {"status": "ok", "width": 8, "height": 8, "steps": 4, "seed": 5, "fit": "crop"}
        | {"split": "train", "mask_file_name": "m.png", "guidance": 3, "boxes": [{"x": 1}]}
        | {"tags": ["t"], "clip_similarity": number / 10}
        for number, name in enumerate(COLOURS)
    ]
    told.append({"row_id": "gone", "method": "pnp", "status": "error", "prompt": "x"})
    schema = results.schema(EXTRA)
    painted = [Image.new("RGB", (8, 8), colour).tobytes() for colour in COLOURS.values()]
    table = pa.Table.from_pylist(told, schema)
    table = table.append_column("pixels", pa.array([*painted, None], pa.binary()))
    sink.write(table, output, "png", schema, "d1")
    return output


def head_of(page: str) -> dict[str, object]:
    """The YAML that a card begins with."""
    return yaml.safe_load(page.split("---\n")[1])


def test_the_datasets_library_loads_every_picture_with_its_row(output, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    output.write("images/aa/leftover.png", b"of a killed run")
    made = write_card(output.uri)
    assert (made.rows, made.left_out) == (4, 1)
    rows = datasets.load_dataset(
        str(tmp_path / "my out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 4
    assert isinstance(rows.features["image"], datasets.Image)
    for row in rows:
        expected = Image.new("RGB", (8, 8), COLOURS[row["row_id"]])
        assert np.array_equal(np.asarray(row["image"]), np.asarray(expected))
        assert row["prompt"] == f"{row['row_id']} cat"
        assert (row["method"], row["steps"], row["seed"], row["fit"]) == ("pnp", 4, 5, "crop")
        assert (row["split"], row["tags"], row["mask_file_name_"]) == ("train", ["t"], "m.png")
        assert row["guidance_"] == 3
        assert row["clip_similarity"] == list(COLOURS).index(row["row_id"]) / 10
    named = {row["row_id"]: row["guidance"] for row in rows}
    assert named == {
        "a": "a.png",
        HOSTILE: "photos/b.png",
        "web": "https://***@host/c.png?...",
        "far": "d.png",
    }
    left = {"output", "status", "error_type", "latents_key", "row_hash", "seconds", "boxes"}
    assert not left & set(rows.column_names)


def test_the_card_tells_how_it_was_made_and_no_secret(output):
    write_card(output.uri, licence="cc-by-4.0", name="My cats: day & night")
    page = output.read("README.md").decode()
    head = head_of(page)
    assert head["license"] == "cc-by-4.0"
    assert head["pretty_name"] == "My cats: day & night"
    assert head["task_categories"] == ["image-to-image"]
    assert head["size_categories"] == ["n<1K"]
    assert "| model | sd |" in page
    told = re.search(r"\| CLIP \| higher \| pnp \| 0\.15 \[(.+), (.+)\] \| 4 \|", page)
    assert told is not None
    low, high = map(float, told.groups())
    assert 0 <= low < 0.15 < high <= 0.3  # of 0, 0.1, 0.2 and 0.3
    assert "1 rows failed and are left out" in page
    assert "cc-by-4&#46;0" in page
    links = [part.split(")")[0] for part in page.split("![](")[1:]]
    assert len(links) == 4
    assert all(output.exists(link) for link in links)
    told = page.encode() + output.read("metadata.parquet")
    for word in (b"somebody", SECRET.encode(), output.uri.encode()):
        assert word not in told


def test_what_strangers_say_is_text_on_one_line(output):
    write_card(output.uri, name=HOSTILE)
    page = output.read("README.md").decode()
    body = page.split("---\n", 2)[2]
    for markup in ("<script", "[x](", "![](z)", "`a`", "# b", "{{", "\x1b", "\u202e", "49"):
        assert markup not in body
    assert sum(line.startswith("| ![](") for line in body.splitlines()) == 4
    assert all(line.count("|") == 5 for line in body.splitlines() if line.startswith("| ![]("))
    assert head_of(page)["pretty_name"].startswith("<script>")


def test_without_a_licence_the_card_says_so(output):
    write_card(output.uri)
    page = output.read("README.md").decode()
    assert "license" not in head_of(page)
    assert "No licence is given" in page


def test_a_card_is_no_leftover_and_is_made_anew_but_a_users_own_is_kept(output):
    write_card(output.uri)
    assert gc.collect(output.uri, delete=True).leftovers == ()
    assert output.exists("README.md")
    assert output.exists("metadata.parquet")
    assert len(results.read(output)) == 5
    first = output.read("README.md"), output.read("metadata.parquet")
    write_card(output.uri)
    assert (output.read("README.md"), output.read("metadata.parquet")) == first
    output.write("README.md", b"# mine\n")
    with pytest.raises(InvalidConfig, match="not made by this command"):
        write_card(output.uri)
    assert output.read("README.md") == b"# mine\n"


def test_the_command_says_where_the_card_is_and_refuses_what_has_no_picture(
    output, tmp_path, capsys
):
    with pytest.raises(SystemExit) as ended:
        cli.main(["dataset", "card", output.uri, "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told == {"card": f"{output.uri}/README.md", "rows": 4, "left_out": 1}
    empty = Storage(str(tmp_path / "empty"))
    record.write(empty, Record({}, {}, rows=1))
    for uri, message in ((empty.uri, "no picture"), (str(tmp_path / "none"), "no run.json")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["dataset", "card", uri])
        assert ended.value.code == 4
        assert message in capsys.readouterr().err


def test_it_works_in_an_object_store(output, s3):
    far = Storage(s3("dataset/card"))
    for name in output.listing():
        far.write(name, output.read(name))
    assert write_card(far.uri).card == f"{far.uri}/README.md"
    table = pq.read_table(io.BytesIO(far.read("metadata.parquet")))
    assert len(table) == 4
    assert all(far.exists(name) for name in table["file_name"].to_pylist())
