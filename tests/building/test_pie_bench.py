"""PIE-Bench, in the form of the published mapping file: entries here are of our own."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

SIDE = 512


def entry(path, **more):
    told = {
        "image_path": path,
        "original_prompt": "a [grey] boat on the sea",
        "editing_prompt": "a [red [wooden]] boat on the sea",
        "editing_instruction": "Paint the boat",
        "editing_type_id": "6",
        "blended_word": "boat boat",
        "mask": [SIDE * 10 + 20, 5, SIDE * SIDE - 2, 9],
    }
    return {**told, **more}


@pytest.fixture
def published(draw, tmp_path):
    """Writes a mapping file beside its folder of images."""
    draw("data/annotation_images", "0_random_140/000000000000.jpg", "1/1_animal/111.jpg")

    def write(entries):
        path = tmp_path / "data/mapping_file.json"
        text = entries if isinstance(entries, str) else json.dumps(entries)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def pixels(mask):
    image = Image.open(io.BytesIO(mask["bytes"]))
    assert (image.format, image.size) == ("PNG", (SIDE, SIDE))
    return np.asarray(image.convert("L")) > 127


def decoded_as_published(encoded):
    """The decoder of PIE-Bench as its paper's text has it, one pixel at a time."""
    mask = np.zeros(SIDE * SIDE)
    for start, length in zip(encoded[::2], encoded[1::2], strict=True):
        for index in range(start, min(start + length, SIDE * SIDE)):
            mask[index] = 1
    mask = mask.reshape(SIDE, SIDE)
    mask[0, :] = mask[-1, :] = 1
    mask[:, 0] = mask[:, -1] = 1
    return mask == 1


def test_prompts_types_and_masks(shell, published):
    other = entry("1/1_animal/111.jpg", editing_type_id="1", mask=[0, SIDE * SIDE])
    file = published({"000000000000": entry("0_random_140/000000000000.jpg"), "111": other})
    first, second = shell.build("pie-bench", file)
    assert first["row_id"] == "000000000000"
    assert first["prompt"] == ["a red wooden boat on the sea"]
    assert first["source_prompt"] == "a grey boat on the sea"
    assert first["image"]["path"] == "data/annotation_images/0_random_140/000000000000.jpg"
    assert (first["editing_type"], first["blended_word"]) == ("change colour", "boat boat")
    assert first["editing_instruction"] == "Paint the boat"
    assert first["benchmark"] == "PIE-Bench"
    mask = pixels(first["mask"])
    assert (mask == decoded_as_published(entry("")["mask"])).all()
    assert mask[10, 20:25].all()
    assert not mask[10, 25]
    assert mask[0].all()
    assert mask[:, -1].all()
    assert pixels(second["mask"]).all()
    assert second["editing_type"] == "change object"


def test_its_copy_of_ti2i_has_neither_masks_nor_types(shell, published, tmp_path):
    path = "data/annotation_images/1/1_animal/111.jpg"
    copy = {"0": {"image_path": path, "original_prompt": "", "editing_prompt": "a robot"}}
    (row,) = shell.build("pie-bench", published(copy))
    assert (row["source_prompt"], row["mask"], row["editing_type"]) == (None, None, None)
    assert row["image"]["path"] == path
    assert row["benchmark"] is None


def test_masks_need_parquet(shell, published):
    file = published({"a": entry("1/1_animal/111.jpg")})
    output = shell.folder / "m.csv"
    said = shell.run("manifest", "pie-bench", file, "--output", output, code=4)
    assert "csv cannot hold the column 'mask'" in said
    assert not output.exists()


PATH = "1/1_animal/111.jpg"


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("[]", "expected an object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"k": 3}, "entry k: not an object"),
        ({"k": entry("../../secret.png")}, "entry k: ../../secret.png does not lie inside"),
        ({"k": entry(PATH, image_path=None)}, "entry k: names no image"),
        ({"k": entry("gone.jpg")}, "entry k: no image gone.jpg"),
        ({"<script>\n": entry("gone.jpg")}, "entry <script>\\n: no image"),
        ({"k": entry(PATH, editing_prompt="[]")}, "entry k: no editing_prompt"),
        ({"k": entry(PATH, editing_prompt=["x"])}, "entry k: editing_prompt is list"),
        ({"k": entry(PATH, editing_prompt="\ud800")}, "entry k: editing_prompt holds half"),
        ({"k": entry(PATH, editing_type_id="10")}, "entry k: editing_type_id is 10"),
        ({"k": entry(PATH, mask=[1])}, "entry k: mask is no list of pairs"),
        ({"k": entry(PATH, mask=["1", 2])}, "entry k: mask is no list of pairs"),
        ({"k": entry(PATH, mask=[-1, 2])}, "entry k: mask leaves the picture"),
        ({"k": entry(PATH, mask=[SIDE * SIDE, 2])}, "entry k: mask leaves the picture"),
        ({"k": entry(PATH, mask=[0, -2])}, "entry k: mask leaves the picture"),
    ],
)
def test_what_is_no_mapping_file_is_refused_by_its_key(shell, published, entries, told):
    said = shell.refused("pie-bench", published(entries))
    assert "mapping_file.json" in said
    assert told in said
