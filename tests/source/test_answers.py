"""What a web server may answer: statuses, trouble that passes, bodies without end or too short."""

from __future__ import annotations

import threading
import time

import pytest

from pnp_batch.errors import ImageNotFound, ImageTooLarge, RowTimeout, StorageError
from pnp_batch.source import read_source
from tests.pictures import PNG
from tests.source.site import SECRET, policy_for


def test_statuses_of_a_server(site):
    for status, kind in ((404, ImageNotFound), (410, ImageNotFound), (403, StorageError)):
        site.routes["x"] = (status, {}, b"")
        with pytest.raises(kind, match=str(status)):
            read_source(site.uri("x"), policy_for("127.0.0.1"))
    site.routes["x"] = (503, {}, b"busy")
    with pytest.raises(StorageError, match="503"):
        read_source(site.uri(f"x?token={SECRET}"), policy_for("127.0.0.1"))
    assert len(site.hits) == 4


def test_trouble_that_passes_is_no_failure(site, at_once):
    bad = [
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PNG),
    ]
    good = bad[1] + PNG
    site.routes["flaky"] = lambda wire: wire.write(bad.pop(0) if bad else good)
    assert read_source(site.uri("flaky"), policy_for("127.0.0.1", attempts=3)) == PNG
    site.routes["gone"] = (404, {}, b"")
    site.hits.clear()
    with pytest.raises(ImageNotFound):
        read_source(site.uri("gone"), policy_for("127.0.0.1", attempts=3))
    assert len(site.hits) == 1


def test_a_dead_or_unknown_host_is_trouble_with_the_storage(site, names):
    with pytest.raises(StorageError) as refused:
        read_source(f"http://127.0.0.1:1/a.png?token={SECRET}", policy_for("127.0.0.1"))
    assert SECRET not in str(refused.value)
    names["unknown.test"] = ()
    with pytest.raises(StorageError):
        read_source("http://unknown.test/a.png", policy_for("unknown.test"))
    site.routes["garbage"] = lambda wire: wire.write(b"SSH-2.0-hello\r\n")
    with pytest.raises(StorageError, match="BadStatusLine"):
        read_source(site.uri("garbage"), policy_for("127.0.0.1"))


def test_a_body_that_ends_early_is_trouble_with_the_storage(site):
    site.routes["short"] = (200, {"Content-Length": "100000"}, PNG)
    site.routes["chunk"] = (200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"99\r\nx")
    for name in ("short", "chunk"):
        with pytest.raises(StorageError):
            read_source(site.uri(name), policy_for("127.0.0.1"))


def test_bodies_are_limited_whether_or_not_they_say_their_size(site):
    sent = []

    def endless(wire):
        wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while len(sent) < 3000:
            wire.write(b"x" * 2**16)
            sent.append(1)

    site.routes["endless"] = endless
    site.routes["declared"] = (200, {"Content-Length": str(2**40)}, b"x")
    for name in ("endless", "declared"):
        with pytest.raises(ImageTooLarge):
            read_source(site.uri(name), policy_for("127.0.0.1", max_bytes=2**18))
    assert len(sent) < 2000


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_bytes_ends_in_time_and_leaves_no_thread(start, site):
    gone = threading.Event()

    def drip(wire):
        try:
            wire.write(start)
            for _ in range(200):
                wire.write(b"x")
                time.sleep(0.05)
        except OSError:
            gone.set()

    site.routes["drip"] = drip
    before = set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(RowTimeout, match="drip"):
        read_source(site.uri("drip"), policy_for("127.0.0.1", read_timeout=0.4))
    assert time.monotonic() - began < 2
    assert gone.wait(2), "the connection was left open"
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
        assert not thread.is_alive()
