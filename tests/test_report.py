"""The report: a page of an output that opens without a server; what strangers say is text on it."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from PIL import Image

from pnp_batch import cli, record, results, sink
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.record import Record
from pnp_batch.report.page import write_report
from pnp_batch.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would make of the page: its tags, what they point to, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    """An output of two rows of one picture, one of them hostile, and a failed one."""
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "a.png")
    rows = [
        {"row_id": "good", "image": "a.png", "prompt": "a cat"},
        {"row_id": HOSTILE, "image": "a.png", "prompt": f"{HOSTILE} & more"},
        {"row_id": "gone", "image": "gone.png", "prompt": "a dog"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = Storage(str(tmp_path / "out"))
    config = RunConfig(str(manifest), output.uri, method="copy").as_dict()
    record.write(output, Record(config, {"model_digest": "d1", "steps": 4}, rows=3))
    pixels = Image.new("RGB", (32, 32), "red").tobytes()
    table = pa.Table.from_pylist(
        [
            {**row, "status": "error" if row["row_id"] == "gone" else "ok", "resolution": 32}
            | ({"width": 32, "height": 32} if row["row_id"] != "gone" else {})
            | (
                {"error_type": "ImageNotFound", "error_message": f"gone.png: {HOSTILE}"}
                if row["row_id"] == "gone"
                else {}
            )
            for row in rows
        ],
        results.SCHEMA,
    )
    painted = pa.array([pixels, pixels, None], pa.binary())
    sink.write(table.append_column("pixels", painted), output, "png", results.SCHEMA)
    return output


def test_the_page_shows_every_row_and_every_picture_it_names_is_there(output):
    place = write_report(output.uri)
    assert place == f"{output.uri}/report/index.html"
    page = Page(output.read("report/index.html").decode())
    assert "2 translated, 1 failed of 3 rows" in page.words
    assert "ImageNotFound" in page.words
    for link in page.links:
        assert output.exists(f"report/{link}".replace("report/../", ""))
    assert len(page.links) == 1 + 2 * 2  # the guidance image, and each picture with its link


def test_what_strangers_say_is_text(output):
    write_report(output.uri)
    page = Page(output.read("report/index.html").decode())
    assert "script" not in page.tags
    assert f"{HOSTILE} & more" in page.words
    assert page.words.count(HOSTILE) >= 3  # prompt, row id, message


def test_only_the_first_rows_are_shown_and_that_is_said(output):
    write_report(output.uri, largest=1)
    page = Page(output.read("report/index.html").decode())
    assert page.tags.count("section") == 1
    assert "The first 1 of 3 rows" in page.words


def test_the_command_says_where_the_page_is_and_refuses_a_place_without_a_run(
    output, tmp_path, capsys
):
    with pytest.raises(SystemExit):
        cli.main(["report", output.uri, "--json"])
    assert json.loads(capsys.readouterr().out) == {"report": f"{output.uri}/report/index.html"}
    with pytest.raises(InvalidConfig, match="no run"):
        write_report(str(tmp_path / "nowhere"))


def test_a_run_that_goes_on_can_be_reported(output):
    there = record.of_run(output.uri)
    record.write(output, replace(there, state=record.RUNNING, finished_at=None))
    write_report(output.uri)
    assert "not yet" in Page(output.read("report/index.html").decode()).words
