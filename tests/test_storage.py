"""Storage: whole files under a root, written whole or not at all, on disk and in object stores."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pnp_batch.storage import Storage, StorageUnavailable, absolute, is_local
from tests import emulators
from tests.torn import reading


@pytest.fixture(params=["local", *emulators.STORES])
def root(request, tmp_path):
    """An empty root, on this machine's disk and in every kind of object store."""
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    return Storage(request.getfixturevalue(request.param)(f"storage/{tmp_path.name}"))


def test_what_is_written_is_read_back(root):
    root.write("a/b.bin", b"\0\xff" * 5000)
    assert root.read("a/b.bin") == root.read_if_there("a/b.bin") == b"\0\xff" * 5000
    assert root.size("a/b.bin") == 10_000
    root.write("a/b.bin", b"")
    assert root.read("a/b.bin") == b""


def test_a_write_replaces_what_is_there(root):
    root.write("x", b"old and long")
    root.write("x", b"new")
    assert root.read("x") == b"new"
    assert root.files() == ["x"]


def test_what_is_not_there_is_absent_and_no_failure(root):
    assert root.files() == root.files("folder") == []
    assert not root.exists("x")
    assert root.read_if_there("x") is None
    with pytest.raises(FileNotFoundError):
        root.read("x")
    root.delete("x")


def test_files_are_listed_by_relative_names_in_order(root):
    for name in ("b.txt", "a/2.txt", "a/1.txt", "ab/3.txt", "a/deep/er/4.txt"):
        root.write(name, b"x")
    assert root.files("a") == ["a/1.txt", "a/2.txt", "a/deep/er/4.txt"]
    assert root.files() == ["a/1.txt", "a/2.txt", "a/deep/er/4.txt", "ab/3.txt", "b.txt"]


def test_a_root_is_empty_until_something_is_below_it(root):
    assert root.is_empty()
    root.write("a/b/x", b"123")
    assert not root.is_empty()
    assert root.sizes() == root.sizes("a") == {"a/b/x": 3}


def test_a_deleted_file_is_gone_at_once(root):
    root.write("a/x", b"1")
    assert root.exists("a/x")
    root.delete("a/x")
    assert not root.exists("a/x")
    assert root.files() == []


def test_another_storage_of_the_same_root_sees_writes_at_once(root):
    other = pickle.loads(pickle.dumps(root))
    assert other.files() == []
    root.write("a/x", b"1")
    assert other.exists("a/x")
    assert other.files("a") == ["a/x"]
    root.write("a/y", b"2")
    assert other.files("a") == ["a/x", "a/y"]
    assert other.read("a/y") == b"2"


@pytest.mark.parametrize("name", ["with space", "ümläut", "a+b=c&d", "per%20cent", "#hash", "[1]"])
def test_names_are_taken_literally(root, name):
    root.write(f"folder/{name}", b"x")
    assert root.files() == [f"folder/{name}"]
    assert root.read(f"folder/{name}") == b"x"
    root.delete(f"folder/{name}")
    assert root.files() == []


def test_a_reader_never_sees_a_torn_file(tmp_path):
    versions = [bytes([n]) * 300_000 for n in range(4)]
    there = Storage(str(tmp_path))
    there.write("x", versions[0])
    with reading(there, "x", versions) as reads:
        for n in range(30):
            there.write("x", versions[n % 4])
    assert reads.count > 5
    assert reads.torn == 0


WRITER = """
import sys
from pnp_batch.storage import Storage
there = Storage(sys.argv[1])
print("ready", flush=True)
while True:
    there.write("x", b"n" * 3_000_000)
"""


@pytest.mark.faults
def test_a_killed_writer_leaves_the_old_bytes_or_the_new_and_nothing_else(tmp_path):
    whole = (b"old", b"n" * 3_000_000)
    there = Storage(str(tmp_path))
    there.write("x", whole[0])
    for attempt in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        with writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.01 * attempt)
            os.kill(writer.pid, signal.SIGKILL)
        assert there.read("x") in whole
        assert there.files() == ["x"]
        there.write("x", whole[0])


def test_a_failed_local_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    there = Storage(str(tmp_path))
    there.write("x", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailable, match=r"cannot write .*/x: .*No space left"):
        there.write("x", b"new")
    assert there.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_root_that_is_a_file_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="file/x"):
        Storage(str(tmp_path / "file")).write("x", b"1")


UNREACHABLE = """
import sys
from pnp_batch.storage import Storage, StorageUnavailable
there = Storage("s3://bucket/out", patience=0.5)
for ask in (there.read, there.exists, there.files, lambda name: there.write(name, b"1")):
    try:
        ask("some/file")
    except StorageUnavailable as error:
        print(error, "|", error.hint)
"""


@pytest.mark.faults
def test_an_unreachable_endpoint_is_named_with_what_was_asked_of_it():
    closed = "http://127.0.0.1:9"
    environ = {**os.environ, "AWS_ENDPOINT_URL": closed, "AWS_ENDPOINT_URL_S3": closed}
    environ["AWS_MAX_ATTEMPTS"] = "1"
    asked = subprocess.run(
        [sys.executable, "-c", UNREACHABLE],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = asked.stdout.splitlines()
    verbs = ("read", "look for", "list", "write")
    assert len(lines) == len(verbs)
    for verb, line in zip(verbs, lines, strict=True):
        assert line.startswith(f"cannot {verb} s3://bucket/out/some/file: ")
        assert "endpoint" in line


def test_an_unknown_scheme_is_named():
    with pytest.raises(StorageUnavailable, match=r"nonsense://x"):
        Storage("nonsense://x").read("y")


def test_a_bucket_that_does_not_exist_is_no_place_to_write(s3):
    with pytest.raises(StorageUnavailable, match="cannot write s3://absent-bucket/out/x"):
        Storage("s3://absent-bucket/out").write("x", b"1")


def test_local_uris_mean_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/people/someone")
    assert absolute("a/b") == f"{tmp_path}/a/b"
    assert absolute("file:///a/b") == absolute("/a/b/") == "/a/b"
    assert absolute("~/b") == "/people/someone/b"
    assert absolute("s3://bucket/a/") == "s3://bucket/a"
    assert is_local("a/b")
    assert is_local("file:///a")
    assert not is_local("s3://a")
