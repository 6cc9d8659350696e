"""Hugging Face datasets as they lie on disk, and the picture world."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch.world import Spec, draw
from tests import pictures


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_metadata_beside_the_images_of_each_split(shell, draw):
    data = draw("data", "train/a.png", "train/sub/b.png", "test/a.png")
    lines(
        data / "train/metadata.jsonl",
        {"file_name": "a.png", "text": "a cat", "prompt": "a dog", "seed": "x", "year": 1999},
        {"file_name": "sub/b.png", "text": None, "prompt": "a fox", "seed": "y", "year": 2001},
    )
    lines(
        data / "test/metadata.jsonl",
        {"file_name": "a.png", "text": "a hen", "prompt": "an owl", "seed": "z", "year": 2002},
    )
    columns = ("--prompt-column", "prompt", "--source-prompt-column", "text")
    rows = {row["row_id"]: row for row in shell.build("hf", data, *columns)}
    assert list(rows) == ["test-a", "train-a", "train-sub-b"]
    first = rows["train-a"]
    assert (first["prompt"], first["source_prompt"], first["split"]) == (
        ["a dog"],
        "a cat",
        "train",
    )
    assert (first["hf_seed"], first["year"]) == ("x", 1999)
    assert first["image"]["path"] == "data/train/a.png"
    assert rows["test-a"]["split"] == "test"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_one_metadata_file_for_all(shell, draw, ending):
    data = draw("data", "a.png", "b.png")
    table = pa.table({"file_name": ["a.png", "b.png"], "text": ["NA", "a, b"], "status": [1, 2]})
    if ending == "parquet":
        pq.write_table(table, data / "metadata.parquet")
    else:
        (data / "metadata.csv").write_text('file_name,text,status\na.png,NA,1\nb.png,"a, b",2\n')
    rows = shell.build("hf", data, "--prompt-column", "text")
    assert [row["prompt"] for row in rows] == [["NA"], ["a, b"]]
    assert [(row["hf_status"], row["split"]) for row in rows] == [(1, None), (2, None)]
    own = shell.build("hf", data, "--prompt", "x", "--prompt", "y", output="n.parquet")
    assert [row["prompt"] for row in own] == [["x", "y"]] * 2


def test_folders_are_classes_where_there_is_no_metadata(shell, draw):
    data = draw("data", "train/cat/1.png", "train/dog/1.png", "2.png", "test/3.png")
    rows = shell.build("hf", data, "--prompt", "x")
    told = {row["row_id"]: (row["split"], row["label"]) for row in rows}
    assert told == {
        "2": (None, None),
        "test-3": ("test", None),
        "train-cat-1": ("train", "cat"),
        "train-dog-1": ("train", "dog"),
    }


def test_json_lines_may_mix_prompts_and_lists_of_them(shell, draw):
    data = draw("data", "a.png", "b.png")
    both = ({"file_name": "a.png", "prompt": "x"}, {"file_name": "b.png", "prompt": ["y", "z"]})
    lines(data / "metadata.jsonl", *both)
    rows = shell.build("hf", data, "--prompt-column", "prompt")
    assert [row["prompt"] for row in rows] == [["x"], ["y", "z"]]
    kept = shell.build("hf", data, "--prompt", "w", output="n.parquet")
    assert [row["hf_prompt"] for row in kept] == [["x"], ["y", "z"]]


def held(*shades):
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in shades]
    return [{"bytes": pictures.saved(image), "path": f"{n}.png"} for n, image in enumerate(images)]


def test_parquet_with_its_images(shell, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    mask = held(9)[0]
    for shard in range(2):
        columns = {"image": held(shard, shard + 10), "edit": ["x", "y"], "number": [shard, 5]}
        more = {"mask": [mask, None], "edited": held(1, 2)}
        name = f"train-0000{shard}-of-00002.parquet"
        pq.write_table(pa.table({**columns, **more}), folder / name)
    rows = shell.build("hf", tmp_path / "data", "--prompt-column", "edit")
    assert [row["row_id"] for row in rows] == [f"train-{n:06d}" for n in range(4)]
    assert [row["image"]["bytes"] for row in rows[2:]] == [i["bytes"] for i in held(1, 11)]
    assert rows[0]["mask"] == mask
    assert {row["split"] for row in rows} == {"train"}
    assert shell.answer["images"] == 4
    assert shell.answer["notes"] == ["columns that hold bytes were left out: edited"]
    one = shell.build("hf", folder / name, "--prompt", "z", output="n.parquet")
    assert [row["number"] for row in one] == [1, 5]


@pytest.mark.parametrize("told", ["../secret.png", "/etc/passwd", "gone.png", "", "a\x00.png"])
def test_metadata_that_names_what_is_not_there(shell, draw, told):
    draw("", "secret.png")
    data = draw("data", "train/a.png")
    rows = ({"file_name": name, "text": "x"} for name in ("a.png", told))
    lines(data / "train/metadata.jsonl", *rows)
    said = shell.refused("hf", data, "--prompt-column", "text")
    assert "train/metadata.jsonl, row 2: " in said


def test_what_a_dataset_lacks_is_said(shell, draw, tmp_path):
    data = draw("data", "a.png")
    assert "--prompt-column NAME" in shell.refused("hf", data, code=2)
    both = ("--prompt-column", "text", "--prompt", "x")
    assert "one of both" in shell.refused("hf", data, *both, code=2)
    assert "no columns" in shell.refused("hf", data, "--prompt-column", "text")
    lines(data / "metadata.jsonl", {"file_name": "a.png", "text": 3})
    assert "did you mean 'text'" in shell.refused("hf", data, "--prompt-column", "txt")
    assert "row 1: prompt is 3" in shell.refused("hf", data, "--prompt-column", "text")
    lines(data / "metadata.jsonl", {"file_name": "a.png", "text": None})
    assert "row 1: 'text' is empty" in shell.refused("hf", data, "--prompt-column", "text")
    gone = tmp_path / "gone.parquet"
    assert "no such file" in shell.refused("hf", gone, "--prompt", "x")
    pq.write_table(pa.table({"image": ["a.png"]}), gone)
    assert "holds no image" in shell.refused("hf", gone, "--prompt", "x")


def test_the_picture_world(shell):
    rows = shell.build("world", "--pairs", "3")
    assert len(rows) == 3
    for row in rows:
        drawn = draw(Spec(**json.loads(row["world"]))).image
        assert row["image"]["bytes"] == pictures.saved(drawn)
        with Image.open(io.BytesIO(row["mask"]["bytes"])) as mask:
            assert mask.size == drawn.size
    prompted = shell.build("world", "--pairs", "3", "--source-prompts", "--force")
    assert [row["source_prompt"] for row in prompted] == [row["source_caption"] for row in rows]
    assert "source_caption" not in prompted[0]
    output = shell.folder / "m.jsonl"
    said = shell.run("manifest", "world", "--pairs", "1", "--output", output, code=4)
    assert "jsonl cannot hold the column 'image'" in said


def test_building_imports_neither_torch_nor_ray(shell, draw):
    script = (
        "import sys; from pnp_batch import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    output = str(shell.folder / "m.parquet")
    arguments = ["manifest", "world", "--pairs", "1", "--output", output]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].startswith(f"wrote {output}: 1 row, 1 image, 1 output")
    assert done.stdout.splitlines()[-1] == "[]"
