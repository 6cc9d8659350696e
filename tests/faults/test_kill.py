"""Runs that are killed without warning: the same command ends with what it would have made."""

from __future__ import annotations

import io
from random import Random

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops

from tests.faults import jobs
from tests.faults.oracle import Expectation, judge, row_ids
from tests.faults.places import Folder

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROWS = 400


def test_killed_workers_and_drivers_leave_nothing_that_the_same_command_does_not_mend(tmp_path):
    manifest = jobs.manifest(tmp_path / "manifest.parquet", ROWS)
    flags = ("--method", "copy", "--workers", "1", "--batch-size", "2")
    job = jobs.Job(manifest, str(tmp_path / "output"), flags)
    kills = jobs.Kills((jobs.TRANSLATOR, jobs.DRIVER), pause=0)
    assert jobs.run_until_done(job, kills, Random(1)) == [-9, 0]
    output = Folder(job.output)
    assert judge(output, Expectation(row_ids(manifest), may_fail=())) == []
    for row in pq.read_table(manifest).to_pylist():
        assert_is_the_same(row["image"]["bytes"], next(output.root.rglob(f"{row['row_id']}-0.png")))


def assert_is_the_same(source, path):
    """What `copy` makes of a picture of the model's own size is that picture."""
    with Image.open(io.BytesIO(source)) as wanted, Image.open(path) as made:
        assert ImageChops.difference(wanted.convert("RGB"), made).getbbox() is None
