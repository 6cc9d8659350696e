"""The lease: one run writes to an output at a time, and a dead one does not block it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from pnp_batch import lease
from pnp_batch.lease import Holder, LeaseLost, OutputBusy
from pnp_batch.storage import Storage

HOLD = """
import sys, time
from pnp_batch import lease
from pnp_batch.storage import Storage
with lease.held(Storage(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    """An empty output, on this machine's disk and on the S3 server."""
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    return Storage(request.getfixturevalue("s3")(f"lease/{tmp_path.name}"))


@pytest.fixture
def other_process(output):
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLD, output.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_holder(output: Storage, **values: object) -> Holder:
    there = replace(Holder.this_process(), **values)
    output.write(lease.NAME, json.dumps(asdict(there)).encode())
    return there


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_a_lease_is_there_as_long_as_it_is_held(output):
    assert not lease.is_held(output)
    with lease.held(output, wait=False) as mine:
        assert lease.is_held(output)
        assert not mine.waited
        mine.check()
    assert output.files() == []


def test_a_second_run_is_refused_with_who_holds_it_and_what_to_do(output, other_process):
    with (
        pytest.raises(OutputBusy, match=f"process {other_process.pid} on") as refused,
        lease.held(output, wait=False),
    ):
        pass
    assert output.uri in str(refused.value)
    assert "--wait" in refused.value.hint
    assert lease.is_held(output)


def test_a_killed_holder_of_this_machine_loses_it_at_once(output, other_process):
    other_process.kill()
    other_process.wait()
    assert not lease.is_held(output)
    with lease.held(output, wait=False) as mine:
        assert not mine.waited
        assert lease.is_held(output)
    assert output.files() == []


def test_a_silent_holder_of_another_machine_loses_it(output):
    write_holder(output, machine="another", renewed_at=ago(lease.EXPIRES_SECONDS - 5))
    with pytest.raises(OutputBusy), lease.held(output, wait=False):
        pass
    write_holder(output, machine="another", renewed_at=ago(lease.EXPIRES_SECONDS + 5))
    with lease.held(output, wait=False):
        assert lease.is_held(output)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}'])
def test_a_lease_that_nobody_can_read_blocks_nobody(output, content):
    output.write(lease.NAME, content)
    with lease.held(output, wait=False):
        assert lease.is_held(output)


def test_who_waits_goes_on_when_the_other_has_ended(output, other_process):
    told = threading.Event()

    def end_the_other() -> None:
        told.wait()
        other_process.kill()
        other_process.wait()

    thread = threading.Thread(target=end_the_other)
    thread.start()
    with lease.held(output, wait=True, waiting=told.set) as mine:
        assert mine.waited
    thread.join()


def test_a_holder_that_was_silent_too_long_learns_that_it_has_lost(output, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    with lease.held(output, wait=False) as mine:
        other = write_holder(output, id="other", machine="another")
        while not mine.lost:
            threading.Event().wait(0.02)
        with pytest.raises(LeaseLost, match="taken over"):
            mine.check()
    there = lease.holder(output)
    assert there is not None
    assert there.id == other.id, "who has lost the lease must not remove the other's"


def test_a_lease_is_renewed(output, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    with lease.held(output, wait=False):
        write_holder(output, id=lease.holder(output).id, renewed_at=ago(50))
        while (datetime.now(UTC) - datetime.fromisoformat(lease.holder(output).renewed_at)) > (
            timedelta(seconds=30)
        ):
            threading.Event().wait(0.02)


def test_of_two_who_take_over_a_dead_lease_one_holds_it(output, monkeypatch):
    write_holder(output, machine="another", renewed_at=ago(1000))
    start, held, refused = threading.Barrier(2), [], []

    def take_over() -> None:
        start.wait()
        try:
            with lease.held(output, wait=False) as mine:
                held.append(mine)
                ended.wait()
        except OutputBusy:
            refused.append(1)
            ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=take_over) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (len(held), len(refused)) == (1, 1)
