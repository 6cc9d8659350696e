"""Comparisons: outputs of one manifest in numbers, levels of a sweep, and the sheet of pictures."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pyarrow as pa
import pytest
from PIL import Image

from pnp_batch import methods, record, results
from pnp_batch.parameters import resolved
from pnp_batch.report import trade
from pnp_batch.report.comparison import differences, markdown, measured, table
from pnp_batch.report.grid import write_grid
from pnp_batch.report.reported import reported
from pnp_batch.report.settings import settings
from pnp_batch.report.sheet import CELL, GAP, SMALL_CELL, Drawn, draw_sheet
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage
from tests.report.outputs import source, written

SHAPED = {"steps": 10, "inversion_steps": 10, "deep_every": 1, "guidance_scale": 7.5}


def rows(count, **more):
    return [
        {"row_id": f"r{n}", "image": "a.png", "prompt": f"prompt {n}", **SHAPED, **more}
        for n in range(count)
    ]


def scored(n):
    return {"clip_similarity": n / 10, "structure_distance": n / 100}


def compared(tmp_path, outputs, names=()):
    """Reads outputs, given as rows by their folders' names."""
    uris = []
    for name, made in outputs.items():
        source(tmp_path / name, "a.png", "teal")
        where = str(tmp_path / "all" / name)
        output = written(tmp_path / name, made, scored=True, where=where)
        there = record.of_run(output.uri)
        config = {**there.config, "method": made[0].get("method", "copy")}
        record.write(output, replace(there, config=config))
        uris.append(output.uri)
    return reported(uris, 100, names)


def test_what_a_variant_is_worth_and_has_cost(tmp_path):
    made = [{**row, **scored(n)} for n, row in enumerate(rows(4, method="copy"))]
    made += [{**made[0], "row_id": "bad", "error_type": "OutOfMemory", "psnr": None}]
    (one,) = compared(tmp_path, {"copy": made})
    found = measured(one)
    assert (found.name, found.method, found.rows, found.done, found.failed) == (
        *("copy", "copy", 5, 4, 1),
    )
    assert found.scores["clip_similarity"].mean == pytest.approx(0.15)
    assert found.scores["structure_distance"].mean == pytest.approx(0.015)
    assert found.seconds == 0.5
    assert found.unet_evaluations == 0
    assert found.parameters["steps"] == 4


def test_evaluations_of_a_row_have_its_share_of_the_inversion_and_the_branch(tmp_path):
    more = {"method": "pnp", "pnp_f_t": 0.8, "pnp_attn_t": 0.5, "latents_key": "k"}
    pnp = methods.get("pnp")
    cost = pnp.cost(Sampling(10), resolved(pnp, more))
    (one,) = compared(tmp_path, {"pnp": rows(4, **more)})
    assert measured(one).unet_evaluations == (10 + cost.guidance) / 4 + cost.translated


class Decoder(methods.Method):
    """A method that costs decodes."""

    name = "decoder"
    summary = "for the tests"

    def cost(self, sampling, parameters):
        return methods.Cost(translated=1, decodes=30, trained=7)


def test_the_table_has_decodes_only_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setitem(methods._OWN, "decoder", f"{__name__}:Decoder")
    methods.get.cache_clear()
    outputs = {"copy": rows(2, method="copy"), "decoder": rows(2, method="decoder")}
    one, other = map(measured, compared(tmp_path, outputs))
    methods.get.cache_clear()
    assert table([one])[0] == ["method", "UNet evaluations", "s"]
    heads, _, line = table([one, other])
    assert heads == ["method", "UNet evaluations", "decodes", "s"]
    assert line == ["decoder", "1", "30", "0.5"]
    assert (one.trained, other.trained) == (0, 7)


def test_the_table_can_be_pasted_into_a_page(tmp_path):
    made = [{**row, **scored(n)} for n, row in enumerate(rows(3))]
    plain = [{**row, "clip_similarity": None} for row in made]
    told = [*map(measured, compared(tmp_path, {"a": made, "b": plain}, ("pnp:a|b=1", "copy")))]
    text = markdown(told, {}, ["a note"])
    head, rule, first, second, *rest = text.splitlines()
    assert head == "| method | structure distance ↓ | CLIP ↑ | UNet evaluations | s |"
    assert rule == "| --- | ---: | ---: | ---: | ---: |"
    assert first == "| `pnp:a\\|b=1` | 0.01 [0, 0.02] | 0.1 [0, 0.2] | 0 | 0.5 |"
    assert second.startswith("| `copy` | 0.01 [0, 0.02] | – |")
    assert rest == ["", "a note"]
    assert [line[:2] for line in table(told, 1)][1] == ["pnp:a|b=1", "0.01 [0, 0.02]"]


def test_differences_are_of_the_same_rows_and_say_more_than_means(tmp_path):
    made = [{**row, **scored(n)} for n, row in enumerate(rows(4))]
    more = [{**row, "clip_similarity": row["clip_similarity"] + 0.05} for row in made]
    more[0] |= {"error_type": "OutOfMemory", "clip_similarity": None, "structure_distance": None}
    more[1]["structure_distance"] = None
    outputs = compared(tmp_path, {"a": made, "b": more[::-1]}, ("copy", "more"))
    apart = differences(outputs)
    assert list(apart) == ["more"]
    found = apart["more"]["clip_similarity"]
    assert (found.low, found.mean, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert apart["more"]["structure_distance"].mean == pytest.approx(0)
    told = [measured(one) for one in outputs]
    means = [one.scores["clip_similarity"] for one in told]
    assert means[0].high > means[1].low  # the intervals of the means overlap
    text = markdown(told, apart, ["a note"])
    assert text.endswith(
        "| less copy | structure distance ↓ | CLIP ↑ |\n"
        "| --- | ---: | ---: |\n"
        "| `more` | +0 [+0, +0] | +0.05 [+0.05, +0.05] |\n\na note\n"
    )
    assert differences(outputs[:1]) == {}


def test_outputs_named_after_their_method_are_one_series_with_a_name_each(tmp_path):
    made = [{**row, **scored(n)} for n, row in enumerate(rows(2))]
    sdedit = [{**row, "method": "sdedit", "strength": 0.5} for row in made]
    outputs = {"copy": made, "sdedit-low": sdedit, "sdedit-high": sdedit, "fast": sdedit}
    found = trade.levels(compared(tmp_path, outputs))
    assert [level.name for level in found] == ["copy", "sdedit-low", "sdedit-high", "fast: sdedit"]
    copy, low, high, fast = (level.series for level in found)
    assert low == high
    assert len({copy, low, fast}) == 3
    named = compared(tmp_path / "n", {"a": sdedit, "b": sdedit}, ("sdedit:steps=2", "sdedit"))
    assert [level.name for level in trade.levels(named)] == ["sdedit:steps=2", "sdedit"]


def settled(*told, method="copy"):
    made = [{"row_id": str(n), "parameters": text} for n, text in enumerate(told)]
    table = pa.Table.from_pylist(made, results.SCHEMA)
    return {words: rows["row_id"].to_pylist() for words, rows in settings(table, method)}


def test_rows_are_told_apart_by_other_parameters_that_differ():
    both = [json.dumps({"mask_mode": mode, "mask_dilation": 1}) for mode in ("both", "foreground")]
    assert settled(*both, None) == {
        "": ["2"],
        " mask_dilation 1, mask_mode both": ["0"],
        " mask_dilation 1, mask_mode foreground": ["1"],
    }
    assert settled(*both, both[0]) == {
        " mask_mode both": ["0", "2"],
        " mask_mode foreground": ["1"],
    }


def test_what_each_row_has_for_itself_is_no_setting():
    told = [json.dumps({"subject": name, "cross_steps": 0.8}) for name in "abc"]
    assert settled(*told) == {"": ["0", "1", "2"]}
    told[0] = json.dumps({"subject": "a", "cross_steps": 0.4})
    assert settled(*told) == {" cross_steps 0.4": ["0"], " cross_steps 0.8": ["1", "2"]}
    assert settled(*told, method="of another machine")[" cross_steps 0.4"] == ["0"]


def test_too_many_settings_are_none():
    told = [json.dumps({"cross_steps": n / 100}) for n in range(13)]
    assert list(settled(*told)) == [""]
    assert len(settled(*told[:12])) == 12


def sheet_of(tmp_path, outputs, names=()):
    place = Storage(str(tmp_path / "sheet"))
    read = compared(tmp_path, outputs, names)
    made = write_grid(read, place)
    return made and Image.open(io.BytesIO(place.read("comparison.png")))


def middle(sheet, line, place, side=CELL):
    """The colour in the middle of a cell, lines counted from below."""
    height = side + 34 + GAP
    across = GAP + place * (side + GAP) + side // 2
    return sheet.getpixel((across, sheet.height - (line + 1) * height + side // 2))


RED, TEAL, GOLD, HOLE = (255, 0, 0), (0, 128, 128), (255, 215, 0), (236, 236, 234)


def test_a_sheet_has_a_line_for_each_row_and_a_column_for_each_output(tmp_path):
    gold = [{**row, "colour": "gold"} for row in rows(2)]
    gold[1] |= {"error_type": "OutOfMemory"}
    third = {"row_id": "more", "image": "a.png", "prompt": "x", **SHAPED}
    sheet = sheet_of(tmp_path, {"red": [*rows(2), third], "gold": [*gold, third]})
    assert sheet.width == 3 * (CELL + GAP) + GAP
    # r1 has failed in one of them, and other rows have not.
    colours = [[middle(sheet, line, place) for place in range(3)] for line in (1, 0)]
    assert colours == [[TEAL, RED, GOLD], [TEAL, RED, RED]]


def test_where_every_row_lacks_a_picture_somewhere_its_place_is_empty(tmp_path):
    bad = [{**row, "error_type": "OutOfMemory"} for row in rows(2)]
    sheet = sheet_of(tmp_path, {"red": rows(2), "bad": bad})
    assert [middle(sheet, 0, place) for place in range(3)] == [TEAL, RED, HOLE]
    assert sheet_of(tmp_path / "none", {"bad": bad}) is None


def test_of_many_rows_some_are_chosen_evenly(tmp_path):
    colours = ["red"] * 8 + ["gold"] * 8 + ["blue"] * 14
    made = [{**row, "colour": c} for row, c in zip(rows(30), colours, strict=True)]
    sheet = sheet_of(tmp_path, {"one": made})
    shown = [middle(sheet, line, 1) for line in reversed(range(8))]
    assert shown == [RED, RED, GOLD, GOLD, *[(0, 0, 255)] * 4]


def test_pictures_of_many_outputs_are_smaller_and_heads_take_the_lines_they_need():
    picture = Image.new("RGB", (32, 32), "red")
    lines = [Drawn(picture, (("", picture),) * 16, "a prompt")] * 8
    plain = draw_sheet(lines, ["x"] * 16, columns=1)
    assert plain.size == (17 * (SMALL_CELL + GAP) + GAP, 8 * (SMALL_CELL + 34 + GAP) + GAP + 15)
    long = draw_sheet(lines, ["p2p inversion=null-text self_steps=0.6"] * 16, columns=1)
    assert long.height == plain.height + 30
    longest = draw_sheet(lines, ["a word or two " * 20, *["x" * 300] * 15], columns=1)
    assert longest.size == long.size
