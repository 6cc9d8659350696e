"""`run.json`: what an output was made with, and the refusal to mix two configurations in it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pnp_batch import clock, config, record
from pnp_batch.config import RunConfig
from pnp_batch.errors import EXIT_INVALID, OutputMismatch
from pnp_batch.record import Record
from pnp_batch.storage import Storage, StorageUnavailable

CONFIG = RunConfig(manifest="m.csv", output="out", negative_prompt="ünscharf", allow_root=("/a",))
SETTINGS = {**config.shaping(CONFIG), "model_digest": "abc", "device": "cpu"}
RECORD = Record(
    config=CONFIG.as_dict(),
    settings=SETTINGS,
    rows=10,
    state=record.DONE,
    done=9,
    failed=1,
    session_done=4,
    started_at=clock.now(),
    updated_at=clock.now(),
    finished_at=clock.now(),
    counts={"inversions": 3},
    versions=record.versions(),
)


@pytest.fixture
def output(tmp_path):
    return Storage(str(tmp_path / "out"))


def test_a_record_is_read_back_as_it_was_written(output):
    assert record.read(output) is None
    record.write(output, RECORD)
    assert record.read(output) == RECORD
    assert RunConfig(**record.read(output).config) == CONFIG


def test_a_record_is_replaced_whole(output):
    record.write(output, RECORD)
    shorter = Record(config={}, settings={}, rows=1)
    record.write(output, shorter)
    assert record.read(output) == shorter
    assert output.files() == ["run.json"]


def test_the_file_is_json_for_people_and_tools(output):
    record.write(output, RECORD)
    text = output.read("run.json").decode()
    body = json.loads(text)
    assert body["fingerprint"] == RECORD.fingerprint == config.fingerprint(SETTINGS)
    assert body["versions"]["ray"]
    assert "ünscharf" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"rows": 3}', b'{"fingerprint": 1}', b"\xff"]
)
def test_a_file_that_is_no_record_is_named(output, content):
    output.write("run.json", content)
    with pytest.raises(StorageUnavailable, match=r"out/run\.json is not a run record") as refused:
        record.read(output)
    assert refused.value.hint


def test_the_same_settings_are_welcome(output):
    record.refuse_other(output, SETTINGS)
    record.write(output, RECORD)
    record.refuse_other(output, SETTINGS)
    record.refuse_other(output, json.loads(json.dumps(SETTINGS)))


def test_other_settings_are_refused_with_all_that_differs(output):
    record.write(output, RECORD)
    other = {**SETTINGS, "steps": 20, "model_digest": "xyz", "fit": "pad"}
    with pytest.raises(OutputMismatch) as refused:
        record.refuse_other(output, other)
    assert refused.value.exit_code == EXIT_INVALID
    message = str(refused.value)
    assert output.uri in message
    assert "fit: 'crop' there, 'pad' now; model_digest: 'abc' there, 'xyz' now" in message
    assert "steps: 50 there, 20 now" in message
    assert "guidance_scale" not in message


def test_settings_that_one_side_lacks_differ(output):
    record.write(output, dataclasses.replace(RECORD, settings={**SETTINGS, "old": 1}))
    with pytest.raises(OutputMismatch, match="new: None there, 2 now; old: 1 there, None now"):
        record.refuse_other(output, {**SETTINGS, "new": 2})


def test_settings_that_are_not_known_yet_may_be_ignored(output):
    record.write(output, RECORD)
    record.refuse_other(output, {**SETTINGS, "device": "auto"}, ignore=("device",))
    with pytest.raises(OutputMismatch, match="device"):
        record.refuse_other(output, {**SETTINGS, "device": "auto"})


def test_records_lie_in_object_stores_too(s3):
    output = Storage(s3("record"))
    assert record.read(output) is None
    record.write(output, RECORD)
    assert record.read(output) == RECORD
