"""Local files that are none, change, hide their size, or never come."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest

from pnp_batch.errors import (
    ImageForbidden,
    ImageNotFound,
    ImageTooLarge,
    RowTimeout,
    StorageError,
)
from pnp_batch.source import SourcePolicy, read_source
from tests.pictures import PNG


def test_what_is_no_regular_file_neither_hangs_nor_is_read(base):
    os.mkfifo(base / "fifo.png")
    (base / "loop.png").symlink_to(base / "loop.png")
    policy = SourcePolicy(base=str(base), roots=("/dev",))
    began = time.monotonic()
    for uri, kind in (
        ("fifo.png", ImageForbidden),
        ("/dev/zero", ImageForbidden),
        ("images", ImageNotFound),
        (".", ImageNotFound),
        ("", ImageNotFound),
        ("loop.png", ImageNotFound),
        ("no.png", ImageNotFound),
        ("images/a b.png/c.png", ImageNotFound),
        ("x" * 300, ImageNotFound),
    ):
        with pytest.raises(kind):
            read_source(uri, policy)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("swap", ["symlink", "fifo"])
def test_a_file_that_is_exchanged_after_the_check_is_not_read(swap, base, tmp_path, monkeypatch):
    path, opened = base / "images" / "a b.png", os.open

    def exchange_and_open(*arguments):
        path.unlink()
        os.mkfifo(path) if swap == "fifo" else path.symlink_to(tmp_path / "outside.png")
        return opened(*arguments)

    monkeypatch.setattr(os, "open", exchange_and_open)
    with pytest.raises((ImageForbidden, ImageNotFound)):
        read_source("images/a b.png", SourcePolicy(base=str(base)))


def test_byte_limit_holds_also_for_files_that_hide_their_size(base):
    exact = SourcePolicy(base=str(base), max_bytes=len(PNG))
    assert read_source("images/a b.png", exact) == PNG
    with pytest.raises(ImageTooLarge, match=r"images/a b\.png"):
        read_source("images/a b.png", SourcePolicy(base=str(base), max_bytes=len(PNG) - 1))
    if Path("/proc/kallsyms").exists():
        with pytest.raises(ImageTooLarge):
            read_source("/proc/kallsyms", SourcePolicy(str(base), roots=("/proc",), max_bytes=100))


def test_no_permission_is_trouble_with_the_storage(base, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")  # root, who runs tests in containers, may all

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        read_source("images/a b.png", SourcePolicy(base=str(base)))


def test_a_read_that_hangs_ends_in_time(base, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(RowTimeout, match=r"0\.3 s"):
        read_source("http://slow/a.png", SourcePolicy(".", hosts=("slow",), read_timeout=0.3))
    assert time.monotonic() - began < 2
