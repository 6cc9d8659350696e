"""TI2I benchmarks, in the form of the published files: entries here are of our own."""

from __future__ import annotations

import pytest

# As the published imnetr-ti2i.yaml: a path that begins with the archive's folder in another case,
# some entries with a source prompt too, and one that has lost its image.
REAL = """\
#### IMAGENET-R #######
  -
    init_img:  /ImageNetR-TI2I/owl/sketch_8.jpg

    target_prompts:
    - a video-game of an owl
    - an oil painting of a swan

  -
    init_img:  /ImageNetR-TI2I/owl/painting_6.jpg
    source_prompt: a painting of an owl

    target_prompts:
    - two owls at the edge of the wood

  -
    source_prompt: a cartoon of a fox

    target_prompts:
    - a toy of a fox
    - a tattoo of a fox
"""

# As the published wild-ti2i-fake.yaml.
FAKE = """\
# boats
- source_prompt: a photo of two boats
  seed: 50
  scale: 5.0
  ddim_steps: 50
  target_prompts:
    - a photo of two swans
    - two paper boats

- source_prompt: a photo of two boats
  seed: 62
  scale: 7.5
  ddim_steps: 50
  target_prompts:
    - a photo of two swans
"""

# As the published wild-ti2i-real.yaml, whose images lie in `data` beside it.
WILD = """\
##### fox
- init_img: "data/translation/benchmark/running_fox.jpeg"
  target_prompts:
    - "a photo of a robot"
"""


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_real_images_of_imagenet_r(shell, draw, tmp_path):
    images = draw("imagenetr-ti2i", "owl/sketch_8.jpg", "owl/painting_6.jpg")
    file = written(images / "imnetr-ti2i.yaml", REAL)
    rows = {row["row_id"]: row for row in shell.build("ti2i", file)}
    assert list(rows) == [
        *("owl-sketch_8-0", "owl-sketch_8-1", "owl-painting_6-0"),
        *("003-a-cartoon-of-a-fox-0", "003-a-cartoon-of-a-fox-1"),
    ]
    first, second, painted, lost, other = rows.values()
    assert first["image"]["path"] == "imagenetr-ti2i/owl/sketch_8.jpg"
    assert first["prompt"] == ["a video-game of an owl"]
    assert (first["source_prompt"], first["seed"]) == (None, None)
    assert {row["benchmark"] for row in rows.values()} == {"ImageNet-R-TI2I"}
    assert (first["class"], first["prompt_family"]) == ("owl", "video-game")
    assert second["prompt_family"] == "oil painting"
    assert (painted["source_prompt"], painted["prompt_family"]) == ("a painting of an owl", None)
    assert (lost["image"]["path"], lost["source_prompt"]) == (None, "a cartoon of a fox")
    assert lost["seed"] == other["seed"] == 0
    assert (shell.answer["images"], shell.answer["generated"]) == (2, 1)
    assert "entry 3 has no seed and no image" in shell.answer["notes"][0]


@pytest.mark.parametrize("folder", ["", "imagenetr-ti2i", "imagenetr-ti2i/owl"])
def test_images_are_found_from_any_of_their_folders(shell, draw, tmp_path, folder):
    draw("imagenetr-ti2i", "owl/sketch_8.jpg", "owl/painting_6.jpg")
    file = written(tmp_path / "elsewhere/imnetr-ti2i.yaml", REAL)
    rows = shell.build("ti2i", file, "--images", tmp_path / folder)
    assert rows[0]["image"]["path"] == "imagenetr-ti2i/owl/sketch_8.jpg"


def test_generated_images_have_a_prompt_and_a_seed(shell, tmp_path):
    file = written(tmp_path / "wild-ti2i-fake.yaml", FAKE)
    rows = shell.build("ti2i", file, output="m.csv")
    assert [row["row_id"] for row in rows] == [
        *("001-a-photo-of-two-boats-0", "001-a-photo-of-two-boats-1", "002-a-photo-of-two-boats-0")
    ]
    assert all(row["image"]["path"] is None for row in rows)
    assert [row["seed"] for row in rows] == [50, 50, 62]
    assert {row["source_prompt"] for row in rows} == {"a photo of two boats"}
    assert [row["source_scale"] for row in rows] == [5.0, 5.0, 7.5]
    assert {row["benchmark"] for row in rows} == {"Wild-TI2I"}
    assert (shell.answer["images"], shell.answer["generated"]) == (0, 2)
    assert shell.answer["notes"] == []


def test_real_images_of_wild_ti2i(shell, draw, tmp_path):
    draw("wild-ti2i", "data/running_fox.jpeg")
    rows = shell.build("ti2i", written(tmp_path / "wild-ti2i/wild-ti2i-real.yaml", WILD))
    assert rows[0]["image"]["path"] == "wild-ti2i/data/running_fox.jpeg"
    assert (rows[0]["class"], rows[0]["benchmark"]) == (None, "Wild-TI2I")
    named = ("--benchmark", "ours", "--images", tmp_path / "wild-ti2i/data")
    file = written(tmp_path / "x.yaml", WILD)
    assert shell.build("ti2i", file, *named, output="n.jsonl")[0]["benchmark"] == "ours"


def test_an_image_of_another_folder_is_no_stand_in(shell, draw, tmp_path):
    images = draw("imagenetr-ti2i", "cat/sketch_8.jpg", "owl/painting_6.jpg")
    said = shell.refused("ti2i", written(images / "imnetr-ti2i.yaml", REAL))
    assert "entry 1: no image /ImageNetR-TI2I/owl/sketch_8.jpg" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "line 1: not valid YAML"),
        ("a: b", "expected a list of entries"),
        ("- just text", "entry 1: is str"),
        ("- init_img: a.png", "entry 1: no target_prompts"),
        ("- init_img: a.png\n  target_prompts: [yes]", "target_prompts is bool"),
        ("- init_img: a.png\n  target_prompts: ['']", "an empty target prompt"),
        ("- target_prompts: [x]", "neither init_img nor source_prompt"),
        ("- init_img: ../secret.png\n  target_prompts: [x]", "entry 1: ../secret.png does not lie"),
        ("- init_img: /etc/passwd\n  target_prompts: [x]", "entry 1: no image /etc/passwd"),
        ("- init_img: 3\n  target_prompts: [x]", "entry 1: names no image"),
        ("- init_img: \"a\\nb\"\n  target_prompts: [x]", "entry 1: no image a\\nb"),
        ("- source_prompt: p\n  seed: -1\n  target_prompts: [x]", "seed is out of range"),
        ("- source_prompt: p\n  seed: much\n  target_prompts: [x]", "seed is str"),
        ("- source_prompt: p\n  ddim_steps: 1e999\n  target_prompts: [x]", "ddim_steps is str"),
        (f"- source_prompt: p\n  ddim_steps: {2**64}\n  target_prompts: [x]", "ddim_steps is out"),
        ('- source_prompt: "\\ud800"\n  target_prompts: [x]', "source_prompt holds half"),
        ("- init_img: a.png\n  target_prompts: !!python/object/apply:os.system [x]", "not valid"),
        ("[" * 500, "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_no_benchmark_is_refused_by_entry(shell, draw, tmp_path, text, told):
    draw("", "secret.png")
    file = written(draw("images", "a.png") / "b.yaml", text)
    said = shell.refused("ti2i", file)
    assert "b.yaml" in said
    assert told in said
