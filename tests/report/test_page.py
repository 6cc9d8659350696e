"""The report's folder: what the page tells, what its scripts hold, and which pictures lie there."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pnp_batch import cli, methods, record, results
from pnp_batch.errors import InvalidConfig, WrongUsage
from pnp_batch.parameters import resolved
from pnp_batch.report.page import write_report
from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage
from tests.report.outputs import HOSTILE, SIDE, digest, image, source, written

if TYPE_CHECKING:
    from pathlib import Path


class Page(HTMLParser):
    """What a browser would make of the page: its tags, what they point to, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words, self.data = "", ""
        self._in_script = False
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_script = tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.data += data
        else:
            self.words += data + " "


def page(folder: Storage) -> Page:
    return Page(folder.read("index.html").decode())


def cases(folder: Storage) -> list[dict[str, Any]]:
    """The cases in the order in which the page loads their scripts."""
    found: list[dict[str, Any]] = []
    for link in page(folder).links:
        if link.startswith("data/"):
            told = re.search(r"JSON\.parse\((.*)\)\);\n\Z", folder.read(link).decode(), re.S)
            assert told
            found += json.loads(json.loads(told[1]))
    return found


def report(*outputs: Storage, **more) -> Storage:
    """Writes a report; its folder."""
    return Storage(write_report(*(one.uri for one in outputs), **more).rpartition("/")[0])


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    """Two rows of one guidance image, and a failed one without."""
    name = source(tmp_path, "a.png", "teal")
    gone = {"error_type": "ImageNotFound", "error_message": f"gone.png: {HOSTILE}"}
    rows = [
        {"row_id": "good", "image": name, "prompt": "a cat"},
        {"row_id": "other", "image": name, "prompt": HOSTILE, "colour": "blue"},
        {"row_id": "gone", "image": "gone.png", "prompt": "a dog", **gone},
    ]
    return written(tmp_path, rows)


def test_the_page_says_what_ran_and_what_failed(output):
    place = write_report(output.uri, price_per_hour=7200)
    assert place == f"{output.uri}/report/index.html"
    words = page(Storage(f"{output.uri}/report")).words
    assert "translated 2 of 3 rows failed 1 33.3% of recorded rows" in words
    assert "1 ImageNotFound gone" in words
    assert "cost 3.00" in words  # three rows of half a second
    assert f"pnp-batch evaluate {output.uri}" in words


def test_whatever_the_page_names_lies_beside_it(output):
    folder = report(output)
    names = [link for link in page(folder).links if not re.match(r"#|data:", link)]
    shown = cases(folder)
    names += [case["source"] for case in shown if "source" in case]
    made = [made for case in shown for made in case["made"] if "thumb" in made]
    names += [name for one in made for name in (one["thumb"], one["full"])]
    assert len(names) >= 3 + 2 + 4
    for name in names:
        there = output if name.startswith("../") else folder
        assert there.exists(name.removeprefix("../")), name


def test_what_strangers_say_is_text(output):
    found = page(report(output))
    assert found.words.count("<script>") == 1  # the message of the failure
    assert found.tags.count("script") == 1 + 1 + 3  # what the page knows, the rows, its own
    assert "img" not in found.tags
    assert HOSTILE not in found.data


def test_rows_stand_in_the_order_of_the_manifest(tmp_path):
    source(tmp_path, "a.png", "teal")
    rows = [{"row_id": name, "image": "a.png", "prompt": name} for name in "zaxb"]
    output = written(tmp_path, rows)
    recorded = results.read(output)
    for part in results.parts(output):
        output.delete(part)
    for chosen in ([3, 0], [2, 1]):  # as workers end them
        results.write(output, recorded.take(chosen))
    assert [case["id"] for case in cases(report(output))] == list("zaxb")


def test_only_so_many_rows_are_shown_and_failed_ones_wherever_they_are(output):
    folder = report(output, limit=1)
    assert [case["id"] for case in cases(folder)] == ["good", "gone"]
    assert "first 1 of 3 rows" in page(folder).words
    assert "first 1" not in page(report(output, limit=3)).words


def test_thumbnails_that_are_there_are_neither_read_nor_made_again(output, tmp_path):
    folder = report(output)
    before = folder.listing("thumbs")
    assert len(before) == 3
    (tmp_path / "a.png").unlink()
    output.delete(cases(folder)[0]["made"][0]["full"].removeprefix("../"))
    again = cases(report(output))
    assert folder.listing("thumbs") == before
    assert "source" in again[0]
    assert "thumb" in again[0]["made"][0]


def test_a_guidance_image_that_is_gone_or_has_changed_is_missing(output, tmp_path):
    (tmp_path / "a.png").write_bytes(image("pink"))
    assert not [case for case in cases(report(output)) if "source" in case]
    (tmp_path / "a.png").unlink()
    shown = cases(report(output))
    assert not [case for case in shown if "source" in case]
    assert all("thumb" in case["made"][0] for case in shown[:2])


def test_a_report_needs_no_manifest(output, tmp_path):
    (tmp_path / "manifest.jsonl").unlink()
    folder = report(output)
    assert len(cases(folder)) == 3
    assert "Its manifest cannot be read from here" in page(folder).words


def test_guidance_images_in_the_manifest_are_shown_as_they_went_to_work(tmp_path):
    wide = Image.new("RGB", (3 * SIDE, SIDE), "teal")
    wide.paste("red", (0, 0, SIDE, SIDE))
    buffer = io.BytesIO()
    wide.save(buffer, "png")
    rows = [{"row_id": "a", "image": "a.png", "prompt": "a cat"}]
    output = written(tmp_path, rows)
    stored = {"bytes": buffer.getvalue(), "path": "a.png"}
    pq.write_table(
        pa.table({"row_id": ["a"], "prompt": ["a cat"], "image": [stored]}),
        tmp_path / "m.parquet",
    )
    there = record.of_run(output.uri)
    config = {**there.config, "manifest": str(tmp_path / "m.parquet")}
    record.write(output, replace(there, config=config))
    folder = report(output)
    shown = Image.open(io.BytesIO(folder.read(cases(folder)[0]["source"])))
    assert shown.size == (SIDE, SIDE)
    assert shown.convert("RGB").getpixel((0, 0)) == (0, 128, 128)  # the middle, not the edge


def test_large_pictures_have_small_copies_and_guidance_images_one_of_their_size(tmp_path):
    name = source(tmp_path, "a.png", "teal", side=600)
    rows = [{"row_id": "a", "image": name, "prompt": "a cat", "resolution": 512}]
    folder = report(written(tmp_path, rows))
    (case,) = cases(folder)
    sizes = {
        name: Image.open(io.BytesIO(folder.read(name))).width
        for name in (case["source"], case["source_full"], case["made"][0]["thumb"])
    }
    assert list(sizes.values()) == [256, 512, 256]


def test_a_record_that_names_files_elsewhere_shows_none(tmp_path):
    source(tmp_path, "a.png", "teal")
    rows = [{"row_id": "a", "image": "a.png", "prompt": "a cat"}]
    output = written(tmp_path, rows)
    (tmp_path / "secret.png").write_bytes(image("black"))
    (row,) = results.read(output).to_pylist()
    results.parts(output)
    for outside in ("images/../../secret.png", str(tmp_path / "secret.png"), "../secret.png"):
        for part in results.parts(output):
            output.delete(part)
        told = {**row, "output": outside, "sha256": digest(image("black"))}
        results.write(output, pa.Table.from_pylist([told], results.SCHEMA))
        (case,) = cases(report(output))
        assert not {"thumb", "full"} & set(case["made"][0]), outside


def test_unet_evaluations_are_those_that_the_methods_say(tmp_path):
    source(tmp_path, "a.png", "teal")
    shaped = {"method": "pnp", "steps": 10, "inversion_steps": 20, "deep_every": 1}
    shaped |= {"guidance_scale": 7.5, "pnp_f_t": 0.8, "pnp_attn_t": 0.5, "latents_key": "k"}
    rows = [{"row_id": f"{n}", "image": "a.png", "prompt": f"{n}", **shaped} for n in range(3)]
    rows.append({**rows[0], "row_id": "bad", "error_type": "OutOfMemory"})
    words = page(report(written(tmp_path, rows))).words
    pnp = methods.get("pnp")
    cost = pnp.cost(Sampling(10, 20), resolved(pnp, {}))
    told = f"{19} inversions, {cost.guidance} guidance, {3 * cost.translated} translation"
    assert told in words


def test_scores_have_means_with_intervals_and_a_plot(tmp_path):
    source(tmp_path, "a.png", "teal")
    rows = [
        {
            "row_id": f"{n}",
            "image": "a.png",
            "prompt": f"{n}",
            "method": method,
            "clip_similarity": 0.2 + n / 100,
            "structure_distance": n / 50,
            "strength": strength,
            "psnr": float("inf"),
            "not_scored": None,
        }
        for n, (method, strength) in enumerate(
            [("copy", None)] * 3 + [("sdedit", 0.5)] * 3 + [("sdedit", 0.75)] * 3
        )
    ]
    folder = report(written(tmp_path, rows, scored=True))
    found = page(folder)
    assert "copy 3 0.21 0.2 to 0.22 0.02 0 to 0.04" in found.words
    assert "sdedit strength 0.5 3" in found.words
    assert "sdedit strength 0.75 3" in found.words
    assert found.tags.count("circle") == 3
    assert found.tags.count("line") == 6  # both ways
    assert cases(folder)[0]["made"][0]["scores"]["psnr"] == "Infinity"
    assert "evaluate" not in found.words


def test_many_scores_are_estimated_without_resampling(tmp_path):
    source(tmp_path, "a.png", "teal")
    rows = [
        {
            "row_id": f"{n}",
            "image": "a.png",
            "prompt": "x",
            "clip_similarity": n % 2 + 0.0,
            "structure_distance": 0.5,
        }
        for n in range(2000)
    ]
    found = page(report(written(tmp_path, rows, scored=True), limit=1))
    assert "copy 2,000 0.5 0.478 to 0.522" in found.words


def test_outputs_are_compared_row_by_row(output, tmp_path):
    source(tmp_path / "b", "a.png", "teal")
    rows = [{"row_id": "good", "image": "a.png", "prompt": "a cat", "colour": "green"}]
    other = written(tmp_path / "b", [*rows, {**rows[0], "prompt": "another", "row_id": "new"}])
    folder = report(output, other, output)
    assert folder.uri == f"{output.uri}/report"
    shown = {case["id"]: [made["in"] for made in case["made"]] for case in cases(folder)}
    assert shown == {"good": [0, 1], "other": [0], "gone": [0], "new": [1]}
    full = cases(folder)[0]["made"][1]["full"]
    assert full.startswith("../../b/out/images/")
    assert json.loads(page(folder).data)["outputs"] == [output.uri, other.uri]  # both end in `out`


def test_pictures_of_another_place_are_thumbnails_alone(tmp_path, s3):
    source(tmp_path, "a.png", "teal")
    rows = [{"row_id": "a", "image": "a.png", "prompt": "a cat"}]
    remote = written(tmp_path, rows, where=s3("report-of-s3"))
    here = report(remote, place=str(tmp_path / "page"))
    assert here.uri == str(tmp_path / "page")
    (case,) = cases(here)
    assert "full" not in case["made"][0]
    assert here.exists(case["made"][0]["thumb"])
    there = report(remote)
    assert there.uri == f"{remote.uri}/report"
    assert cases(there)[0]["made"][0]["full"].startswith("../images/")
    assert there.exists(cases(there)[0]["source"])


def test_scripts_of_an_earlier_report_go_and_nothing_else(output):
    folder = report(output)
    folder.write("data/rows-of-mine.js", b"")
    before = folder.files("data")
    rows = results.read(output).to_pylist()
    more = {**rows[0], "row_id": "more"}
    results.write(output, pa.Table.from_pylist([more], results.SCHEMA))
    report(output)
    after = folder.files("data")
    assert "data/rows-of-mine.js" in after
    assert len(after) == len(before) == 2
    assert after != before


def test_a_run_that_goes_on_can_be_reported(output):
    there = record.of_run(output.uri)
    going = replace(there, state=record.RUNNING, finished_at=None, rows=9)
    record.write(output, going)
    words = page(report(output)).words
    assert "not ended yet" in words
    assert "6 rows were missing" in words


def test_a_run_without_any_rows_yet_can_be_reported(output):
    for part in results.parts(output):
        output.delete(part)
    folder = report(output)
    assert cases(folder) == []
    assert "translated 0 of 3 rows" in page(folder).words


def test_the_command_says_where_the_page_is_and_refuses_a_place_without_a_run(
    output, tmp_path, capsys
):
    place = str(tmp_path / "elsewhere")
    for more, where in (([], f"{output.uri}/report"), (["--output", place], place)):
        with pytest.raises(SystemExit):
            cli.main(["report", output.uri, *more, "--json"])
        assert json.loads(capsys.readouterr().out) == {"report": f"{where}/index.html"}
    with pytest.raises(InvalidConfig, match="no run"):
        write_report(output.uri, str(tmp_path / "nowhere"))
    with pytest.raises(WrongUsage):
        write_report()
