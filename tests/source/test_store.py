"""Objects of a store that works, and of one that refuses, fails, hangs or lies."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import s3fs

from pnp_batch import client
from pnp_batch.errors import (
    ImageForbidden,
    ImageNotFound,
    ImageTooLarge,
    RowTimeout,
    StorageError,
)
from pnp_batch.source import SourcePolicy, read_source
from tests.pictures import PNG


def test_objects_of_a_store(s3, tmp_path):
    store = s3fs.S3FileSystem()
    prefix = s3("source")
    store.pipe_file(f"{prefix}/images/a b.png", PNG)
    store.pipe_file(f"{prefix}/empty.png", b"")
    policy = SourcePolicy(base=prefix + "/", read_timeout=30)
    for uri in ("images/a b.png", "./images//a b.png", f"{prefix}/images/a b.png"):
        assert read_source(uri, policy) == PNG
    local = SourcePolicy(base=str(tmp_path), read_timeout=30)
    assert read_source(f"S3{prefix[2:]}/images/a b.png", local) == PNG
    assert read_source("empty.png", policy) == b""
    for uri in ("images", "no.png", f"{prefix}/no.png", "s3://no-such-bucket/a.png"):
        with pytest.raises(ImageNotFound):
            read_source(uri, policy)
    for uri in ("../source/images/a b.png", "images/..%2f..%2fa.png", str(tmp_path / "a.png")):
        with pytest.raises(ImageForbidden):
            read_source(uri, policy)
    with pytest.raises(ImageTooLarge, match=r"images/a b\.png"):
        read_source("images/a b.png", SourcePolicy(prefix, max_bytes=len(PNG) - 1, read_timeout=30))


@pytest.fixture
def store(site, monkeypatch):
    """A site in the place of the S3 server, which answers as badly as a test wants."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{site.address}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{site.address}")
    monkeypatch.setattr("fsspec.config.conf", {"s3": {"skip_instance_cache": True}})
    client.forget()
    yield site
    client.forget()


def test_a_store_that_refuses_or_fails(store, at_once):
    policy = SourcePolicy(base=".", read_timeout=20)
    store.routes["bucket/forbidden.png"] = (403, {}, b"")
    with pytest.raises(StorageError, match="PermissionError"):
        read_source("s3://bucket/forbidden.png", policy)
    assert len(store.hits) == 1, "a refusal lasts"
    for name, trouble in (("busy", (503, {}, b"")), ("reset", lambda wire: wire.close())):
        store.routes[f"bucket/{name}.png"] = trouble
        store.hits.clear()
        with pytest.raises(StorageError, match=name):
            read_source(f"s3://bucket/{name}.png", policy)
        # aiohttp itself asks once more where a connection breaks before the answer.
        most = policy.attempts * (2 if name == "reset" else 1)
        assert len(store.hits) <= most, "the retries of two layers multiply"


def test_a_store_that_hangs_is_left_in_time_and_leaves_no_thread(store):
    store.routes["bucket/hang.png"] = lambda _wire: time.sleep(3)
    policy = SourcePolicy(base=".", read_timeout=0.5)
    before = set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(RowTimeout):
        read_source("s3://bucket/hang.png", policy)
    for thread in set(threading.enumerate()) - before:
        if thread.name == "pnp-batch-read":
            thread.join(1)
            assert not thread.is_alive()
    assert time.monotonic() - began < 2


def test_objects_are_read_only_up_to_the_limit_and_whole(store):
    policy = SourcePolicy(base=".", max_bytes=1000, read_timeout=20, attempts=1)
    store.routes["bucket/large.png"] = (200, {"Content-Length": "1001"}, b"")
    with pytest.raises(ImageTooLarge, match="large"):
        read_source("s3://bucket/large.png", policy)
    assert len(store.hits) == 1, "the size is asked for before anything is read"
    store.routes["bucket/empty.png"] = b""
    assert read_source("s3://bucket/empty.png", policy) == b""
    assert len(store.hits) == 2, "a range of an empty object is an error of its own"
    store.hits.clear()
    store.routes["bucket/short.png"] = lambda wire: wire.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (900 if len(store.hits) == 1 else 50)
        + b"x" * 50 * (len(store.hits) > 1)
    )
    with pytest.raises(StorageError, match="50 of 900"):
        read_source("s3://bucket/short.png", policy)


def test_a_store_whose_client_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    client.forget()
    with pytest.raises(StorageError, match="gcsfs"):
        read_source("gs://bucket/a.png", SourcePolicy(base="."))
    client.forget()
