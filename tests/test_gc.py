"""What killed runs leave behind is found and, when asked, removed; nothing else ever is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from pnp_batch import cli, gc, lease, record, results, sink
from pnp_batch.errors import InvalidConfig
from pnp_batch.latents import LatentCache
from pnp_batch.lease import Holder, OutputBusy
from pnp_batch.record import Record
from pnp_batch.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = "ab" * 32, "cd" * 32
LEFT = {"images/aa/left.png", "masks/aa/left.png", f"images/bb/.tmp-{'0' * 12}-1-ff", ".tmp-x"}
OURS = {"run.json", "images/00/a.png", sink.mask_name("a"), f"latents/{LatentCache.name(KEY)}"}
USERS = {"notes.txt", "report/index.html", "results/mine.csv"}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An output with one good row, one failed row, leftovers, and files of the user's own."""
    uri = str(tmp_path / "out")
    if request.param == "s3":
        uri = request.getfixturevalue("s3")(f"gc/{tmp_path.name}")
    output = Storage(uri)
    record.write(output, Record(config={}, settings={}, rows=2))
    rows = [
        {"row_id": "a", "status": "ok", "output": "images/00/a.png", "latents_key": KEY},
        {"row_id": "b", "status": "error", "output": None, "latents_key": None},
    ]
    results.write(output, pa.Table.from_pylist(rows, results.SCHEMA))
    for name in (OURS | LEFT | USERS | {f"latents/{LatentCache.name(OTHER)}"}) - {"run.json"}:
        output.write(name, b"x")
    return output


def held_by(output: Storage, pid: int) -> None:
    there = replace(Holder.this_process(), pid=pid)
    output.write(lease.NAME, json.dumps(asdict(there)).encode())


def test_leftovers_are_listed_and_nothing_is_touched(output):
    before = output.listing().keys()
    found = gc.collect(output.uri)
    assert set(found.leftovers) == LEFT
    assert (found.missing, found.deleted, found.busy) == ((), False, False)
    assert output.listing().keys() == before


def test_what_is_asked_for_is_removed_and_nothing_else(output):
    before = set(output.listing())
    found = gc.collect(output.uri, delete=True)
    assert found.deleted
    assert before - set(output.listing()) == LEFT
    assert gc.collect(output.uri).leftovers == ()


def test_latents_are_leftovers_only_when_asked(output):
    other = f"latents/{LatentCache.name(OTHER)}"
    assert set(gc.collect(output.uri, latents=True).leftovers) == {*LEFT, other}
    gc.collect(output.uri, delete=True, latents=True)
    assert not output.exists(other)
    assert all(output.exists(name) for name in OURS | USERS)


def test_a_running_jobs_files_are_nobodys(output):
    before = {*output.listing(), lease.NAME}
    held_by(output, os.getpid())
    found = gc.collect(output.uri)
    assert found.busy
    assert found.leftovers == ()
    with pytest.raises(OutputBusy):
        gc.collect(output.uri, delete=True)
    assert set(output.listing()) == before


def test_a_dead_runs_lease_is_a_leftover(output):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    held_by(output, ended.pid)
    assert lease.NAME in gc.collect(output.uri).leftovers
    gc.collect(output.uri, delete=True)
    assert not output.exists(lease.NAME)


def test_images_that_are_gone_are_told_by_row(output, capsys):
    output.delete("images/00/a.png")
    assert gc.collect(output.uri).missing == ("a",)
    with pytest.raises(SystemExit):
        cli.main(["gc", output.uri])
    assert "rows 'a'" in capsys.readouterr().out


def test_a_place_without_a_run_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_bytes(b"x")
    with pytest.raises(InvalidConfig, match="no run"):
        gc.collect(str(tmp_path), delete=True)
    assert (tmp_path / "images/mine.png").exists()


def test_the_command_lists_removes_and_says_how_to_go_on(output, capsys):
    for flags, last in (([], f"next: pnp-batch gc {output.uri} --delete"), (["--delete"], "")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["gc", output.uri, *flags])
        assert (ended.value.code or 0) == 0
        told = capsys.readouterr().out.strip()
        assert set(told.splitlines()) >= LEFT
        assert told.endswith(last or "4 leftovers removed")
