"""`pnp-batch inspect`: its picture, its numbers, and what it says of bad images and options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pnp_batch import cli


@pytest.fixture
def command(
    folders: dict[str, Path],
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs `inspect` in a folder with a.png, and b.png above it; exit code and both outputs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, picture in zip(("a.png", "../b.png"), pictures, strict=False):
        picture.save(name)

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        model = ("--model", str(folders["sd1"]), "--steps", "4", "--device", "cpu")
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", *arguments, *model])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err.strip().splitlines()

    return run


def test_picture_and_numbers(command: Any, tmp_path: Path) -> None:
    options = ("--layers", "3,7,4", "--times", "0.5,0", "--prompt", "a red cat", "--json")
    code, out, err = command("a.png", str(tmp_path / "b.png"), *options)
    found = json.loads(out)
    assert code == 0, err
    assert err == ["inverting 'a.png'", "inverting 'b.png'"]
    at = [(m["timestep"], m["layer"]) for m in found["features"]]
    assert at == [(t, layer) for t in (751, 251) for layer in (3, 4, 7)]
    own = [(m["image"], m["timestep"], m["layer"]) for m in found["self_attention"]]
    assert own == [(n, t, layer) for n in (0, 1) for t in (751, 251) for layer in (4, 7)]
    sizes = {m["layer"]: (m["channels"], m["height"], m["width"]) for m in found["features"]}
    assert sizes == {3: (32, 2, 2), 4: (32, 2, 2), 7: (16, 4, 4)}
    for m in (*found["features"], *found["self_attention"]):
        shares = m["explained_variance"]
        assert len(shares) == 3
        assert 0 < sum(shares) <= 1.0001
        assert shares == sorted(shares, reverse=True)
    assert [w["word"] for w in found["cross_attention"]["words"]] == ["a", "red", "cat"] * 2
    assert found["cross_attention"]["layers"] == [9, 10, 11]
    picture = Image.open(found["picture"])
    assert (found["picture"], picture.format) == (str(tmp_path / "here" / "inspect.png"), "PNG")
    assert picture.width == 2 * 14 + 7 * 104 + 6 * 8  # the image and six maps across
    assert 900 < picture.height < 1100  # three sections of two rows
    shown = np.asarray(picture.convert("RGB").crop((14, 91, 14 + 104, 91 + 104)))
    given = Image.open("a.png").convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    assert np.abs(shown.astype(int) - np.asarray(given.resize((104, 104), 0))).mean() < 2


def test_without_a_prompt_there_are_no_words_and_the_picture_is_replaced(
    command: Any, tmp_path: Path
) -> None:
    (tmp_path / "there.png").write_bytes(b"old")
    code, out, _ = command("a.png", "--layers", "1", "--output", "../there.png")
    assert code == 0
    assert out.splitlines()[-1] == f"look at {tmp_path}/here/../there.png"
    assert out.startswith("features: t 501, layer 1, 1 x 1: 0 + 0 + 0 % of the variance")
    with Image.open(tmp_path / "there.png") as picture:
        assert picture.height < 250  # one section of one row


def test_names_and_prompts_from_strangers_are_drawn_as_text(command: Any, tmp_path: Path) -> None:
    name = "\u202e鳥 {0} %s " + "x" * 100 + ".png"
    Image.open("a.png").save(tmp_path / name)
    prompt = "<b>bold</b>\x00 \u202e {0} %s" + " many" * 100
    code, _, err = command(str(tmp_path / name), "--layers", "4", "--prompt", prompt)
    assert (code, len(err)) == (0, 1), err
    code, _, err = command("new\nline \x1b[31m.png")
    assert (code, len(err)) == (4, 2), err
    assert "\x1b" not in "".join(err)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("gone.png",), 4, "gone.png: no such image"),
        (("a.png", "broken.png"), 4, "broken.png"),
        (("http://localhost:1/a.png",), 4, "--allow-host"),
        (("a.png", "--layers", "12"), 2, "12"),
        (("a.png", "--layers", "four"), 2, "four"),
        (("a.png", "--times", "1.5"), 2, "1.5"),
        (("a.png", "--prompt", " ., "), 4, "no words"),
        (("a.png", "--output", "../here/a.png"), 4, "replace"),
        (("a.png", "--output", "a.jpg"), 4, "PNG"),
        (("a.png", "--resolution", "40"), 4, "32"),
        ((), 2, "IMAGE"),
    ],
)
def test_what_cannot_be_inspected_is_told_in_two_lines(
    command: Any, arguments: tuple[str, ...], code: int, told: str
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    before = Path("a.png").read_bytes()
    ended, out, err = command(*arguments)
    assert (ended, out) == (code, ""), err
    error, hint = err
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert len(hint) > len("hint: ")
    assert told in error + hint
    assert Path("a.png").read_bytes() == before
    assert not Path("inspect.png").exists()
