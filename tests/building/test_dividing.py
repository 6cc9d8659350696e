"""Parts and samples of a manifest: the same rows with the same ids, images and seeds."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import manifest, methods
from pnp_batch.config import RunConfig
from pnp_batch.rows import expand
from tests import pictures


def outputs(path):
    """What a run of a manifest would make: each output row, by its id."""
    config = RunConfig(manifest=str(path), output="-")
    read = manifest.read(str(path))
    tables = pa.concat_tables(expand(read, config, methods.KNOWN))
    rows = tables.to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows)
    # Where an image lies is told from the manifest's own folder, and both hashes follow from it.
    moved = ("image", "row_hash", "guidance")
    return {row["row_id"]: {k: v for k, v in row.items() if k not in moved} for row in rows}


ROWS = [
    {"image": "photos/a.png", "prompt": ["x", "y"], "shop": 1},
    {"image": "photos/b.png", "prompt": "x", "shop": 2},
    {"image": "photos/a.png", "prompt": "z", "shop": 3},
    {"image": "photos/c.png", "prompt": "x", "shop": None},
    {"image": "photos/c.png", "prompt": "x", "shop": None},
    {"image": None, "prompt": "x", "source_prompt": "a cat", "shop": 4},
    {"image": "photos/gone.png", "prompt": ["x"], "row_id": "mine", "shop": 5},
]


@pytest.fixture(params=["jsonl", "parquet", "csv"])
def whole(request, draw, tmp_path):
    draw("photos", "a.png", "b.png", "c.png")
    path = tmp_path / f"whole.{request.param}"
    if request.param == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
        return path
    alone = [row for row in ROWS if isinstance(row["prompt"], str)]
    if request.param == "parquet":
        listed = [{**row, "prompt": [row["prompt"], "w"]} for row in alone]
        pq.write_table(pa.Table.from_pylist(listed), path)
        return path
    names = ("image", "prompt", "source_prompt", "shop")
    cells = [[str(row.get(name) or "") for name in names] for row in alone]
    path.write_text("\n".join(",".join(line) for line in [names, *cells]))
    return path


def test_parts_hold_every_row_as_it_was(shell, whole):
    said = json.loads(
        shell.run("manifest", "split", whole, "-n", "3", "--output", shell.folder / "to", "--json")
    )
    parts = sorted((shell.folder / "to").iterdir())
    assert [p.name for p in parts] == [f"part-00{n}{whole.suffix}" for n in range(3)]
    assert [part["manifest"] for part in said["parts"]] == [str(p) for p in parts]
    found = [outputs(part) for part in parts]
    assert sum(map(len, found)) == len(outputs(whole))
    assert {k: v for part in found for k, v in part.items()} == outputs(whole)
    images = [
        {row["image"]["path"] for row in manifest.read(str(p)).table.to_pylist()} for p in parts
    ]
    assert sum(map(len, images)) == len(set.union(*images))
    for part, told in zip(parts, said["parts"], strict=True):
        assert sum(len(x["prompt"]) for x in manifest.read(str(part)).table.to_pylist()) == (
            told["outputs"] if whole.suffix != ".jsonl" else len(outputs(part))
        )
    assert said["parts"][0]["allow_root"] == [str(shell.folder)]
    assert f"--allow-root {shell.folder}" in said["parts"][0]["next"]
    again = shell.run("manifest", "split", whole, "-n", "3", "--output", parts[0].parent, code=4)
    assert "--force" in again
    alone = shell.run("manifest", "split", whole, "-n", "9", "--output", "x", code=4)
    assert "use -n" in alone


def test_a_sample_is_some_rows_as_they_were(shell, whole):
    def drawn(seed, name, count=2):
        output = shell.folder / f"{name}{whole.suffix}"
        command = ("manifest", "sample", whole, "-n", count, "--seed", seed)
        shell.run(*command, "--output", output)
        return outputs(output)

    first = drawn(1, "one")
    everything = outputs(whole)
    assert len(manifest.read(str(shell.folder / f"one{whole.suffix}")).table) == 2
    assert first == drawn(1, "two")
    assert first.items() <= everything.items()
    assert len({tuple(drawn(seed, f"s{seed}")) for seed in range(6)}) > 1
    assert drawn(0, "all", 99) == everything


def test_a_sample_beside_the_whole_names_images_alike(shell, draw, tmp_path):
    photos = draw("photos", "a.png", "b.png", "c.png")
    rows = shell.build("folder", photos, "--prompt", "x")
    some = shell.build("sample", tmp_path / "m.parquet", "-n", "2", output="some.parquet")
    assert len(some) == 2
    assert all(row in rows for row in some)
    assert shell.answer["allow_root"] == []


def test_embedded_images_stay_embedded(shell, tmp_path):
    images = [{"bytes": pictures.saved(pictures.picture(8, n + 8)), "path": "a"} for n in range(4)]
    table = pa.table({"image": images, "prompt": ["x"] * 4})
    pq.write_table(table, tmp_path / "whole.parquet")
    shell.run("manifest", "split", tmp_path / "whole.parquet", "-n", 2, "--output", tmp_path / "to")
    found = [row for n in range(2) for row in shell.read(tmp_path / f"to/part-00{n}.parquet", [])]
    assert sorted(row["image"]["bytes"] for row in found) == sorted(i["bytes"] for i in images)
    assert pq.read_schema(tmp_path / "to/part-000.parquet").field("prompt").type == pa.string()


def test_other_formats_are_refused(shell, whole):
    command = ("manifest", "sample", whole, "-n", 2, "--output")
    other = ".csv" if whole.suffix != ".csv" else ".jsonl"
    said = shell.run(*command, shell.folder / f"x{other}", code=4)
    assert f"ends in {whole.suffix}" in said
