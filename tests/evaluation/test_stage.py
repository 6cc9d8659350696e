"""The scoring stage: what it makes of rows whose pictures are not what they were."""

from __future__ import annotations

import hashlib
import io
import json

import pyarrow as pa
import pytest

from pnp_batch.evaluation import Named, measures
from pnp_batch.scores import REASON, SCORED_WITH
from pnp_batch.source import SourcePolicy
from pnp_batch.stages import Reading, Score, Scoring
from pnp_batch.stages.work import packed
from pnp_batch.storage import Storage
from tests.evaluation.conftest import SIDE, picture


@pytest.fixture
def work(tmp_path) -> Scoring:
    storage = Storage(str(tmp_path / "out"))
    reading = Reading(SourcePolicy(str(tmp_path)), SIDE, "crop")
    return Scoring(storage, measures(("pixels", "background"), "demo", Named()), "cpu", 1, reading)


def row(work, name, **changes):
    """A recorded row and its guidance image, as the stage gets them."""
    buffer = io.BytesIO()
    picture(1).save(buffer, "png")
    data = buffer.getvalue()
    work.output.write(f"images/{name}.png", data)
    record = {
        "row_id": name,
        "prompt": "x",
        "source_prompt": None,
        "output": f"images/{name}.png",
        "sha256": hashlib.sha256(data).hexdigest(),
        "source_sha256": "s",
        "recorded_at": 5,
        "mask": None,
        REASON: changes.pop("before", None),
        SCORED_WITH: changes.pop("keys", None),
    }
    given = {"pixels": picture(2).tobytes(), "source_sha256": "s", "error_message": None}
    for key, value in changes.items():
        (given if key in given and key != "source_sha256" else record)[key] = value
    return {"record": record, **given}


def table_of(*rows):
    table = pa.Table.from_pylist(list(rows))
    number = table.schema.get_field_index("record")
    records = pa.Table.from_struct_array(table["record"])
    stamp = records["recorded_at"].cast(pa.timestamp("us", "UTC"))
    place = records.schema.get_field_index("recorded_at")
    records = records.set_column(place, "recorded_at", stamp)
    return table.set_column(number, "record", records.to_struct_array())


def scored(work, *rows):
    table = table_of(*rows)
    found = Score(work)(packed(table))
    known = [field.name for field in table.schema.field("record").type]
    assert found.column_names[: len(known)] == known
    return {one["row_id"]: one for one in found.to_pylist()}


def test_what_is_not_there_or_not_the_same_any_more_has_no_scores_and_says_why(work):
    gone = row(work, "gone")
    replaced = row(work, "replaced")
    work.output.delete("images/gone.png")
    work.output.write("images/replaced.png", b"something else")
    found = scored(
        work,
        row(work, "good"),
        gone,
        replaced,
        row(work, "changed", source_sha256="other"),
        row(work, "generated", pixels=None),
        row(work, "lost", pixels=None, error_message="a.png is not there"),
        row(work, "masked", mask="nowhere.png"),
    )
    assert isinstance(found["good"]["psnr"], float)
    reasons = {name: json.loads(one[REASON]) for name, one in found.items()}
    assert "psnr" not in reasons["good"]
    assert reasons["gone"]["psnr"] == "images/gone.png is gone"
    assert "not the picture that was recorded" in reasons["replaced"]["ssim"]
    assert reasons["changed"]["ssim"] == "the guidance image has changed since"
    assert "was generated" in reasons["generated"]["ssim"]
    assert reasons["lost"]["ssim"] == "no guidance image: a.png is not there"
    assert "nowhere.png" in reasons["masked"]["background_mse"]
    assert isinstance(found["masked"]["psnr"], float)
    for one in found.values():
        assert (one["psnr"] is None) == ("psnr" in json.loads(one[REASON]))


def test_a_scored_record_is_a_moment_younger_and_keeps_what_others_said(work):
    before = json.dumps({"lpips": "no network", "psnr": "old"})
    found = scored(work, row(work, "a", before=before, keys="clip:1:abc pixels:0:-"))["a"]
    assert found["recorded_at"].microsecond == 6
    assert json.loads(found[REASON])["lpips"] == "no network"
    assert "psnr" not in json.loads(found[REASON])
    assert found[SCORED_WITH].split() == ["background:1:-", "clip:1:abc", "pixels:1:-"]


def test_no_rows_are_no_rows(work):
    assert len(Score(work)(packed(table_of(row(work, "a")).slice(0, 0)))) == 0
