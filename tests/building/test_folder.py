"""Images of a folder with prompts: the cross product, and the pairs of a CSV file."""

from __future__ import annotations

import json
import os

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch.building import Target
from pnp_batch.building.folder import from_folder
from pnp_batch.building.refusal import NotBuilt


def by_id(rows, *columns):
    return {row["row_id"]: tuple(row[name] for name in columns) for row in rows}


def paths(rows):
    return [row["image"]["path"] for row in rows]


def test_every_image_with_every_prompt(shell, draw, tmp_path):
    photos = draw("photos", "b.jpg", "deep/er/a.PNG", ".hidden/x.png", "._b.jpg")
    (photos / "readme.txt").write_text("no image")
    (tmp_path / "prompts.txt").write_text("\ufeffa night\n\n  an oil painting  \n")
    rows = shell.build("folder", photos, "--prompts", tmp_path / "prompts.txt", "--prompt", "snow")
    assert by_id(rows, "prompt") == {
        "b": (["snow", "a night", "an oil painting"],),
        "deep-er-a": (["snow", "a night", "an oil painting"],),
    }
    assert paths(rows) == ["photos/b.jpg", "photos/deep/er/a.PNG"]
    told = shell.answer
    assert (told["rows"], told["images"], told["outputs"], told["generated"]) == (2, 2, 6, 0)
    assert told["allow_root"] == []


def test_images_elsewhere_are_named_in_full_with_the_flag_that_allows_them(shell, draw, tmp_path):
    photos = draw("photos", "a.png")
    (tmp_path / "work").mkdir()
    said = shell.run(
        "manifest", "folder", photos, "--prompt", "x", "--output", tmp_path / "work/m.parquet"
    )
    assert f"run it with --allow-root {photos}" in said
    command = said.splitlines()[-1].removeprefix("next: pnp-batch ").split()
    assert "bad rows: 0" in shell.run(*command)
    assert "bad rows: 1" in shell.run("validate", tmp_path / "work/m.parquet", "--images")


def test_folders_may_be_told_by_way_of_their_parents(shell, draw, tmp_path, monkeypatch):
    photos = draw("photos", "a.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    command = ("manifest", "folder", "../photos", "--prompt", "x", "--output")
    shell.run(*command, "m.parquet")
    assert paths(shell.read(tmp_path / "work/m.parquet", ["../photos"])) == [f"{photos}/a.png"]
    shell.run(*command, "../m.parquet")
    assert paths(shell.read(tmp_path / "m.parquet", [])) == ["photos/a.png"]


def test_links_lead_nowhere_but_inside(shell, draw, tmp_path):
    outside, photos = draw("outside", "secret.png"), draw("photos", "a.png")
    (photos / "inside.png").symlink_to("a.png")
    (photos / "out.png").symlink_to(outside / "secret.png")
    (photos / "gone.png").symlink_to("nothing.png")
    (photos / "loop").symlink_to(photos)
    (photos / "there").symlink_to(outside)
    os.mkfifo(photos / "pipe.png")
    rows = shell.build("folder", photos, "--prompt", "x")
    assert [row["row_id"] for row in rows] == ["a", "inside"]
    assert "links" in shell.answer["notes"][0]


def test_a_folder_behind_a_link_needs_the_flag(shell, draw, tmp_path):
    draw("elsewhere", "a.png")
    (tmp_path / "work").mkdir()
    (tmp_path / "work/photos").symlink_to(tmp_path / "elsewhere")
    rows = shell.build("folder", tmp_path / "work/photos", "--prompt", "x", output="work/m.parquet")
    assert paths(rows) == ["photos/a.png"]
    assert shell.answer["allow_root"] == [str(tmp_path / "work/photos")]


@pytest.mark.parametrize("name", ["new\nline.png", "a\x7f.png", os.fsdecode(b"\xff.png")])
def test_a_name_that_no_run_reads_is_refused_in_one_line(shell, draw, name):
    said = shell.refused("folder", draw("photos", "a.png", name), "--prompt", "x")
    assert "photos" in said
    assert "rename the file" in said


def test_names_become_ids_that_are_unique_and_safe(shell, draw):
    names = ["<script>.png", "a b.png", "a-b.png", "a.png", "A.PNG", "x.jpg", "x.png", "é.png"]
    odd = ["雪.png", "data:image.png", "~.png", "%2e%2e.png", "l" * 200 + ".png", "con.png"]
    rows = shell.build("folder", draw("photos", *names, *odd), "--prompt", "x")
    ids = [row["row_id"] for row in rows]
    assert {"script", "e", "data-image", "con", "2e-2e"} <= set(ids)
    assert not {"a-b", "a", "A", "x"} & set(ids)
    assert len({row_id.casefold() for row_id in ids}) == len(names) + len(odd)
    assert all(row_id.isascii() and len(row_id) < 100 and "/" not in row_id for row_id in ids)
    again = shell.build("folder", shell.folder / "photos", "--prompt", "x", output="n.parquet")
    assert [row["row_id"] for row in again] == ids


def test_csv_has_a_row_for_each_prompt_under_the_id_of_the_result(shell, draw):
    prompts = ["--prompt", 'a "dog", wet', "--prompt", "line"]
    photos = draw("photos", "a.png", "b.png")
    rows = shell.build("folder", photos, *prompts, output="m.csv")
    assert by_id(rows, "prompt")["b-0"] == (['a "dog", wet'],)
    assert list(by_id(rows)) == ["a-0", "a-1", "b-0", "b-1"]
    lines = shell.build("folder", photos, *prompts, output="m.jsonl")
    assert by_id(lines, "prompt") == {name: (['a "dog", wet', "line"],) for name in "ab"}


def test_a_manifest_that_is_there_stays_unless_forced(shell, draw):
    photos = draw("photos", "a.png")
    shell.build("folder", photos, "--prompt", "x")
    before = (shell.folder / "m.parquet").read_bytes()
    again = ("manifest", "folder", photos, "--prompt", "y", "--output", shell.folder / "m.parquet")
    assert "--force" in shell.run(*again, code=4)
    assert (shell.folder / "m.parquet").read_bytes() == before
    shell.run(*again, "--force")
    assert pq.read_table(shell.folder / "m.parquet")["prompt"].to_pylist() == [["y"]]
    assert sorted(p.name for p in shell.folder.iterdir()) == ["m.parquet", "photos"]


def test_a_manifest_that_appears_meanwhile_stays(draw, tmp_path):
    photos, path = draw("photos", "a.png"), tmp_path / "m.parquet"
    target = Target(str(path))
    path.write_text("another's")
    with pytest.raises(NotBuilt, match="is there already"):
        from_folder(str(photos), ["x"], target)
    assert path.read_text() == "another's"
    with pytest.raises(NotBuilt, match="is there already"):
        Target(str(path))


def test_what_is_missing_is_said(shell, draw, tmp_path):
    photos = draw("photos", "a.png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    assert "no prompts" in shell.refused("folder", photos, code=2)
    assert "latin.txt: not UTF-8" in shell.refused(
        "folder", photos, "--prompts", tmp_path / "latin.txt"
    )
    assert "no such folder" in shell.refused("folder", tmp_path / "gone", "--prompt", "x")
    assert "no images" in shell.refused("folder", tmp_path / "empty", "--prompt", "x")
    wrong = ("manifest", "folder", photos, "--prompt", "x", "--output", tmp_path / "m.txt")
    assert ".parquet, .csv or .jsonl" in shell.run(*wrong, code=2)


def test_a_bucket_of_images(shell, s3):
    place = s3("building")
    with fsspec.open(f"{place}/photos/sub/a.png", "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    rows = shell.build("folder", f"{place}/photos", "--prompt", "x")
    assert paths(rows) == [f"{place}/photos/sub/a.png"]
    command = ("manifest", "folder", f"{place}/photos", "--prompt", "x")
    shell.run(*command, "--output", f"{place}/m.parquet")
    assert paths(shell.read(f"{place}/m.parquet", [])) == ["photos/sub/a.png"]
    assert "--force" in shell.run(*command, "--output", f"{place}/m.parquet", code=4)


def pairs(tmp_path, *lines):
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_pairs_keep_their_columns_and_name_images_again(shell, draw, tmp_path):
    photos = draw("photos", "a.png", "sub/b.png")
    table = pairs(
        tmp_path, "image,prompt,seed,shop", "a.png,x,3,7", "a.png,y,,8", "./sub/b.png,z,,9"
    )
    rows = shell.build("pairs", table, "--images", photos)
    assert by_id(rows, "prompt", "seed", "shop") == {
        "a": (["x"], 3, 7),
        "a--2": (["y"], None, 8),
        "sub-b": (["z"], None, 9),
    }
    assert paths(rows) == ["photos/a.png", "photos/a.png", "photos/sub/b.png"]
    named = pairs(tmp_path, "file,text,row_id", "photos/a.png,x,mine")
    columns = ("--image-column", "file", "--prompt-column", "text")
    rows = shell.build("pairs", named, *columns, output="n.csv")
    assert by_id(rows, "prompt") == {"mine": (["x"],)}


@pytest.mark.parametrize(
    "reference", ["../secret.png", "sub/../../secret.png", "/etc/passwd", "file:///etc/passwd",
                  "..\\secret.png", "gone.png", "http://169.254.169.254/x.png", "A.PNG"],
)  # fmt: skip
def test_pairs_name_files_of_the_folder_only(shell, draw, tmp_path, reference):
    draw("", "secret.png")
    photos = draw("photos", "a.png")
    table = pairs(tmp_path, "image,prompt", "a.png,x", f"{reference},y")
    said = shell.refused("pairs", table, "--images", photos)
    assert "pairs.csv, row 2: " in said
    assert reference in said


def test_pairs_that_are_none_are_refused(shell, draw, tmp_path):
    photos = draw("photos", "a.png")

    def said(*lines):
        return shell.refused("pairs", pairs(tmp_path, *lines), "--images", photos)

    assert "row 1: the prompt is empty" in said("image,prompt", "a.png, ")
    assert "row 1: names no image" in said("image,prompt", ",x")
    assert "did you mean 'promt'" in said("image,promt", "a.png,x")
    assert "two rows have the id same" in said(
        "image,prompt,row_id", "a.png,x,same", "a.png,y,same"
    )
    assert "status" in said("image,prompt,status", "a.png,x,ok")
    assert "no such table" in shell.refused("pairs", tmp_path / "gone.csv")


def test_json_tells_what_comes_next(shell, draw):
    photos = draw("photos", "a.png")
    output = shell.folder / "m.parquet"
    said = shell.run("manifest", "folder", photos, "--prompt", "x", "--output", output, "--json")
    assert json.loads(said)["next"] == f"pnp-batch validate {output} --images"
