"""Images from strangers: what may be read, what becomes of it, and what every attack ends as."""

from __future__ import annotations

import errno
import http.server
import io
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageCms

from pnp_batch import config
from pnp_batch.errors import (
    ImageForbidden,
    ImageNotFound,
    ImageTooLarge,
    ImageUndecodable,
    InvalidConfig,
    RowError,
    RowTimeout,
    StorageError,
)
from pnp_batch.source import FORMATS, SourcePolicy, decode, encode, prepare, read_source

POLICY = SourcePolicy(base=".")
SECRET = "hunter2"


def picture(width=40, height=30, mode="RGB"):
    """Smooth, asymmetric in both axes."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def saved(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(image):
    return np.asarray(image).astype(int)


PNG = saved(picture())


# ---- local files ---------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "manifest"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a b.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    return folder


def test_paths_inside_the_manifests_folder_are_read(base):
    policy = SourcePolicy(base=str(base))
    inside = base / "images" / "a b.png"
    for uri in (
        "images/a b.png",
        "./images/../images/a b.png",
        str(inside),
        inside.as_uri(),
        f"file://localhost{inside}",
    ):
        assert read_source(uri, policy) == PNG
    assert read_source("images/a b.png", SourcePolicy(base=base.as_uri() + "/")) == PNG


def test_a_folder_reached_by_a_symlink_is_the_same_folder(base, tmp_path):
    (tmp_path / "alias").symlink_to(base)
    assert read_source("images/a b.png", SourcePolicy(base=str(tmp_path / "alias"))) == PNG
    policy = SourcePolicy(base=str(base))
    assert read_source(str(tmp_path / "alias" / "images" / "a b.png"), policy) == PNG


def test_outside_is_refused_with_the_flag_that_would_allow_it(base, tmp_path):
    (base / "link.png").symlink_to(tmp_path / "outside.png")
    (base / "up").symlink_to(tmp_path)
    outside = tmp_path / "outside.png"
    for uri in (
        "../outside.png",
        "images/../../outside.png",
        "link.png",
        "up/outside.png",
        str(outside),
        outside.as_uri(),
        f"file://{base}/%2e%2e/outside.png",
    ):
        with pytest.raises(ImageForbidden) as refused:
            read_source(uri, SourcePolicy(base=str(base)))
        assert f"--allow-root {tmp_path}" in str(refused.value)
        assert read_source(uri, SourcePolicy(base=str(base), roots=(str(tmp_path),))) == PNG


def test_a_name_that_only_begins_like_the_root_is_outside(base, tmp_path):
    (tmp_path / "manifest-private").mkdir()
    (tmp_path / "manifest-private" / "a.png").write_bytes(PNG)
    with pytest.raises(ImageForbidden):
        read_source("../manifest-private/a.png", SourcePolicy(base=str(base)))


def test_a_file_uri_names_this_machine(base):
    with pytest.raises(ImageForbidden, match="file:///"):
        read_source(f"file://server{base}/images/a%20b.png", SourcePolicy(base=str(base)))


def test_nobody_learns_what_exists_outside(base):
    kinds = set()
    for uri in ("/etc/passwd", "/etc/no-such-file"):
        with pytest.raises(RowError) as refused:
            read_source(uri, SourcePolicy(base=str(base)))
        kinds.add((type(refused.value), str(refused.value).replace(uri, "")))
    assert len(kinds) == 1


@pytest.mark.parametrize(
    "uri",
    [
        "a\0.png",
        "a\n.png",
        "a\x7f.png",
        "a\x9b.png",
        "file:///tmp/a%00.png",
        "file:///tmp/a%0a.png",
        "lone\ud800surrogate.png",
        "simplecache::s3://bucket/a.png",
        "zip://a.png::s3://bucket/a.zip",
        "images/a b.png::",
        "zip://a.zip",
        "memory://a.png",
        "data:image/png;base64,AAAA",
        "data://image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        "ftp://host/a.png",
        "sftp://host/a.png",
        "github://org:repo@/a.png",
        "local:///etc/passwd",
        "reference://x",
        "file:a.png",
        "file://server/share/a.png",
        "FILE:///etc/passwd",
        "http://example.org/a.png",
        "HTTPS://example.org/a.png",
        f"s3://user:{SECRET}@bucket/a.png",
        f"http://user:{SECRET}@127.0.0.1/a.png",
        f"http://user:{SECRET}/x@127.0.0.1/a.png?token={SECRET}",
        f"abfs://user:{SECRET}@account/a.png",
        f"https://example.org/a.png?X-Amz-Signature={SECRET}",
        f"x::https://user:{SECRET}@example.org/a.png",
        "s3:///a.png",
        "s3://bucket/../a.png",
        "s3://bucket/%2e%2e/a.png",
        "http://127.0.0.1\\@example.org/a.png",
        "http://[::1/a.png",
        "http://127.0.0.1:port/a.png",
        "http:///a.png",
    ],
)
def test_forbidden_uris(uri, base):
    with pytest.raises(ImageForbidden) as refused:
        read_source(uri, SourcePolicy(base=str(base), hosts=("127.0.0.1",)))
    message = str(refused.value)
    assert SECRET not in message
    assert message.isprintable()


def test_hostile_uris_cost_no_time(base):
    began = time.monotonic()
    for uri in ("://" * 300_000, "x://" + ":" * 900_000, "data:" + "A" * 900_000, "/" * 900_000):
        with pytest.raises(RowError) as refused:
            read_source(uri, SourcePolicy(base=str(base)))
        assert len(str(refused.value)) < 1000
    assert time.monotonic() - began < 5


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


# ---- http ----------------------------------------------------------------------------------------


class Site(http.server.ThreadingHTTPServer):
    """Answers `/name` with `routes['name']`: a body, (status, headers, body), or a function."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes, self.hits = {"a.png": PNG}, []
        self.address = f"127.0.0.1:{self.server_port}"

    def uri(self, name, host="127.0.0.1"):
        return f"http://{host}:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        """A client that hangs up is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.hits.append(self.path)
        self.close_connection = True
        route = self.server.routes.get(urlsplit(self.path).path[1:], (404, {}, b""))
        if callable(route):
            route(self.wfile)
            return
        status, headers, body = route if isinstance(route, tuple) else (200, {}, route)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def serving():
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site():
    with serving() as server:
        yield server


@pytest.fixture
def canary():
    with serving() as server:
        yield server
        assert server.hits == []


@pytest.fixture
def names(monkeypatch):
    """A name server of the test: name -> addresses, or a list of answers used up one by one."""
    table = {}
    real = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if host not in table:
            return real(host, port, *args, **kwargs)
        found = table[host]
        found = found.pop(0) if isinstance(found, list) else found
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in ip], socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return table


def policy_for(*hosts, **limits):
    return SourcePolicy(base=".", hosts=hosts, **{"attempts": 1} | limits)


def test_allowed_hosts_are_read(site, names):
    names["images.test"] = ("127.0.0.1",)
    for hosts in (("127.0.0.1",), (site.address,), ("elsewhere", site.address)):
        assert read_source(site.uri("a.png"), policy_for(*hosts)) == PNG
    named = policy_for("Images.TEST.", "127.0.0.1")
    assert read_source(site.uri("a.png", "images.test"), named) == PNG
    assert read_source(site.uri("a.png", "IMAGES.test."), named) == PNG
    assert read_source(site.uri("a.png", "[::ffff:127.0.0.1]"), policy_for("127.0.0.1")) == PNG
    site.routes["b c.png"] = site.routes["b%20c.png"] = PNG
    assert read_source(site.uri("b c.png?size=1 2"), named) == PNG
    assert site.hits[-1] == "/b%20c.png?size=1%202"
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join(1)
        assert not timer.is_alive(), "a read that has ended still has its time limit"


def test_paths_relative_to_a_manifest_on_the_web(site):
    policy = SourcePolicy(base=f"http://{site.address}", hosts=(site.address,))
    assert read_source("a.png", policy) == PNG
    with pytest.raises(ImageForbidden, match="--allow-host 127"):
        read_source("a.png", SourcePolicy(base=f"http://{site.address}"))


def test_other_hosts_and_ports_get_no_request(canary, names):
    names["canary.test"] = ("127.0.0.1",)
    for hosts in ((), ("127.0.0.2",), ("127.0.0.1:1",), ("canary",), ("test",), ("https://x/",)):
        with pytest.raises(ImageForbidden, match=r"--allow-host 127\.0\.0\.1"):
            read_source(canary.uri("a.png"), policy_for(*hosts))
    with pytest.raises(ImageForbidden, match=r"--allow-host sub\.canary\.test"):
        read_source(canary.uri("a.png", "sub.canary.test"), policy_for("canary.test", "127.0.0.1"))
    with pytest.raises(ImageForbidden):
        read_source(f"http://x:{SECRET}@{canary.address}/a.png", policy_for("127.0.0.1"))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.3", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.3", "2002:7f00:1::", "64:ff9b::7f00:1", "::"),
    ],
)
def test_names_at_private_addresses_get_no_request(address, canary, names, monkeypatch):
    names["inside.test"] = (address,)
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: connected.append(to))
    with pytest.raises(ImageForbidden, match=r"no public address.*--allow-host"):
        read_source(canary.uri("a.png", "inside.test"), policy_for("inside.test"))
    names["mixed.test"] = ("93.184.215.14", address)
    with pytest.raises(ImageForbidden, match="no public address"):
        read_source(canary.uri("a.png", "mixed.test"), policy_for("mixed.test"))
    assert connected == []


def test_other_spellings_of_a_private_address_get_no_request(canary):
    for host in ("2130706433", "0x7f000001", "127.1", "localhost", "[::ffff:127.0.0.1]"):
        entry = host.strip("[]") if "[" not in host else "elsewhere"
        with pytest.raises(ImageForbidden, match="--allow-host"):
            read_source(canary.uri("a.png", host), policy_for(entry))


def test_a_second_answer_of_the_name_server_changes_nothing(site, canary, names):
    # The answer that is checked is an allowed address where nobody listens; the next one would be
    # the canary's. A reader that resolves the name again to connect would hit the canary.
    names["rebind.test"] = [("127.0.0.9",), ("127.0.0.1",), ("127.0.0.1",)]
    with pytest.raises(StorageError):
        read_source(canary.uri("a.png", "rebind.test"), policy_for("rebind.test", "127.0.0.9"))
    assert len(names["rebind.test"]) == 2


def test_redirects_are_followed_and_each_is_checked(site, canary, names):
    names["inside.test"] = ("127.0.0.1",)
    policy = policy_for(site.address, "inside.test")
    site.routes["moved"] = (302, {"Location": "/a.png"}, b"")
    site.routes["again"] = (307, {"Location": "moved"}, b"")
    assert read_source(site.uri("again"), policy) == PNG
    for target in (
        canary.uri("a.png"),
        canary.uri("a.png", "inside.test"),
        f"//{canary.address}/a.png",
        f"http://user:{SECRET}@{site.address}/a.png",
        "file:///etc/passwd",
        f"ftp://{site.address}/a.png",
        "s3://bucket/a.png",
        "data:image/png;base64,AAAA",
        "http://[::1/a.png",
    ):
        site.routes["away"] = (302, {"Location": target}, b"")
        with pytest.raises(ImageForbidden) as refused:
            read_source(site.uri("away"), policy)
        assert SECRET not in str(refused.value)


def test_redirects_end(site):
    site.routes["loop"] = (301, {"Location": "/loop"}, b"")
    site.routes["nowhere"] = (302, {}, b"")
    for name in ("loop", "nowhere"):
        with pytest.raises(StorageError, match="redirect"):
            read_source(site.uri(name), policy_for("127.0.0.1"))
    assert len(site.hits) < 10


def test_statuses_of_a_server(site):
    for status, kind in ((404, ImageNotFound), (410, ImageNotFound), (403, StorageError)):
        site.routes["x"] = (status, {}, b"")
        with pytest.raises(kind, match=str(status)):
            read_source(site.uri("x"), policy_for("127.0.0.1"))
    site.routes["x"] = (503, {}, b"busy")
    with pytest.raises(StorageError, match="503"):
        read_source(site.uri(f"x?token={SECRET}"), policy_for("127.0.0.1"))
    assert len(site.hits) == 4


def test_trouble_that_passes_is_no_failure(site):
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


def test_https_is_verified_against_the_name(site, canary, names, tmp_path, monkeypatch):
    import ssl

    from pnp_batch.source import web

    certificate = self_signed("secure.test", tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    site.socket = server.wrap_socket(site.socket, server_side=True)
    names["secure.test"] = names["other.test"] = ("127.0.0.1",)
    policy = policy_for("secure.test", "other.test", "127.0.0.1")
    uri = site.uri("a.png", "secure.test").replace("http:", "https:")
    with pytest.raises(StorageError, match="SSLCertVerificationError"):
        read_source(uri, policy)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(web, "_tls", lambda: trusting)
    assert read_source(uri, policy) == PNG
    with pytest.raises(StorageError, match="SSLCertVerificationError"):
        read_source(uri.replace("secure", "other"), policy)


def self_signed(name, folder):
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


# ---- object stores -------------------------------------------------------------------------------


def test_objects_of_a_store(s3, tmp_path):
    import s3fs

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
    from pnp_batch.source import read

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{site.address}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{site.address}")
    monkeypatch.setattr("fsspec.config.conf", {"s3": {"skip_instance_cache": True}})
    monkeypatch.setattr(_Handler, "do_HEAD", _Handler.do_GET, raising=False)
    read._file_system.cache_clear()
    yield site
    read._file_system.cache_clear()


def test_a_store_that_refuses_or_fails(store):
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
    from pnp_batch.source import read

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    read._file_system.cache_clear()
    with pytest.raises(StorageError, match="gcsfs"):
        read_source("gs://bucket/a.png", POLICY)


# ---- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format(image_format):
    lossy = image_format in ("JPEG", "WEBP", "AVIF", "GIF")
    result = decode(saved(picture(), image_format), POLICY)
    assert (result.mode, result.size, result.info) == ("RGB", (40, 30), {})
    assert np.abs(pixels(result) - pixels(picture())).mean() < (8 if lossy else 1e-9)


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS", "PDF"])
def test_other_formats_are_refused(image_format):
    with pytest.raises(ImageUndecodable, match="JPEG, PNG"):
        decode(saved(picture(32, 32), image_format), POLICY)


def test_what_is_no_picture():
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for data in (b"", b"\0", b"hello", PNG[:4], svg, b"PK\3\4" + PNG):
        with pytest.raises(ImageUndecodable):
            decode(data, POLICY)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (KeyError("a\nb" + "x" * 5000), ImageUndecodable),
        (RecursionError(), ImageUndecodable),
        (MemoryError(), ImageTooLarge),
    ],
)
def test_whatever_the_decoder_raises_ends_the_row_with_one_line(raised, kind, monkeypatch):
    def fail(_image):
        raise raised

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(kind) as ended:
        decode(PNG, POLICY)
    assert str(ended.value).isprintable()
    assert len(str(ended.value)) < 1000


@pytest.mark.parametrize("image_format", FORMATS)
def test_truncated_pictures(image_format):
    whole = saved(picture(200, 150), image_format)
    with pytest.raises(ImageUndecodable):
        decode(whole[: len(whole) // 2], POLICY)


def png_header(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(5000)))
        + chunk(b"IEND", b"")
    )


def test_pixel_limit_holds_before_pixels_are_decoded(monkeypatch):
    assert decode(PNG, SourcePolicy(base=".", max_pixels=1200)).size == (40, 30)
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded.append)
    with pytest.raises(ImageTooLarge, match=r"40 x 30 pixels.*1199"):
        decode(PNG, SourcePolicy(base=".", max_pixels=1199))
    with pytest.raises(ImageTooLarge):
        decode(png_header(13_000, 13_000), POLICY)
    assert loaded == []


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000, 2**31 - 1])
def test_bombs_are_errors_whatever_limit_is_configured(side):
    with pytest.raises(ImageTooLarge):
        decode(png_header(side, side), SourcePolicy(base=".", max_pixels=10**18))


def test_byte_limit_holds_for_embedded_bytes():
    with pytest.raises(ImageTooLarge, match=f"{len(PNG)} bytes"):
        decode(PNG, SourcePolicy(base=".", max_bytes=len(PNG) - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, image_format):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # stored = upright.transpose(...)
    stored = picture()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decode(saved(stored, image_format, exif=exif), POLICY)
    assert result.size == (40, 30)
    assert np.abs(pixels(result) - pixels(picture())).mean() < 12
    assert prepare(result, 30, "stretch").getexif().get(0x0112) is None


def test_broken_exif_is_ignored():
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff",
    ):
        assert decode(saved(picture(), "JPEG", exif=exif), POLICY).size == (40, 30)
    text, numbers = b"\0\2\0\0\0\4up!\0", b"\0\3\0\0\0\2\0\x09\0\6"  # where one of 1 to 8 belongs
    for value in (text, numbers, b"\0\3\0\0\0\1\0\x09\0\0"):
        odd = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12" + value + bytes(4)
        assert decode(saved(picture(), "JPEG", exif=odd), POLICY).size == (40, 30)


def test_sixteen_bit_keeps_its_range():
    ramp = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    expected = np.rint(ramp / 257).astype(int)
    for image_format in ("PNG", "TIFF"):
        result = pixels(decode(saved(Image.fromarray(ramp), image_format), POLICY))
        assert np.array_equal(result, np.repeat(expected[..., None], 3, -1))
    big_endian = Image.frombytes("I;16B", (40, 30), ramp.astype(">u2").tobytes())
    assert np.array_equal(pixels(decode(saved(big_endian, "TIFF"), POLICY))[..., 0], expected)
    clear = saved(Image.fromarray(ramp), "PNG", transparency=0)
    assert pixels(decode(clear, POLICY))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 255), (0, 65535), (-3, 5), (0, 1e9), (-3e38, 3e38)]
)
def test_float_pictures_keep_their_range(low, high):
    ramp = np.linspace(low, high, 1200, dtype=np.float64).astype(np.float32).reshape(30, 40)
    result = pixels(decode(saved(Image.fromarray(ramp), "TIFF"), POLICY))[..., 0]
    assert np.abs(result - np.linspace(0, 255, 1200).reshape(30, 40)).max() <= 1


def test_odd_numbers_in_float_and_integer_pictures():
    odd = np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], dtype=np.float32)
    result = pixels(decode(saved(Image.fromarray(odd), "TIFF"), POLICY))[0, :, 0]
    assert result.tolist() == [0, 128, 255, 0, 255, 0]
    for value in (-1, 7, np.nan):
        flat = Image.fromarray(np.full((2, 2), value, np.float32))
        assert decode(saved(flat, "TIFF"), POLICY).mode == "RGB"
    for top in (255, 65535, 2**31 - 1):
        ramp = np.linspace(0, top, 256).astype(np.int32).reshape(16, 16)
        result = pixels(decode(saved(Image.fromarray(ramp), "TIFF"), POLICY))[..., 0]
        assert np.abs(result - np.arange(256).reshape(16, 16)).max() <= 1


def with_alpha(mode):
    image = picture().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 30))
    alpha.paste(128, (10, 0, 20, 30))
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "image_format"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG"), ("RGBA", "WEBP")]
)
def test_transparency_is_composited_on_white(mode, image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    result = pixels(decode(saved(with_alpha(mode), image_format, **options), POLICY))
    opaque = pixels(picture().convert("L" if mode == "LA" else "RGB").convert("RGB"))
    assert (result[:, :10] == 255).all()
    assert np.abs(result[:, 10:20] - (opaque[:, 10:20] * 128 + 255 * 127) / 255).max() <= 1.01
    assert np.abs(result[:, 20:] - opaque[:, 20:]).max() <= 1


def test_transparent_colours_and_palettes():
    grey = Image.new("L", (4, 4), 9)
    grey.putpixel((0, 0), 200)
    colour = Image.new("RGB", (4, 4), (9, 9, 9))
    colour.putpixel((0, 0), (200, 200, 200))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 200, 200, 200])
    palette.putpixel((0, 0), 1)
    for data in (
        saved(grey, "PNG", transparency=9),
        saved(colour, "PNG", transparency=(9, 9, 9)),
        saved(palette, "PNG", transparency=0),
        saved(palette, "PNG", transparency=b"\0\xff"),
        saved(palette, "GIF", transparency=0),
    ):
        result = pixels(decode(data, POLICY))
        assert result[0, 0].tolist() == [200, 200, 200]
        assert result[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("1", "PNG"),
        ("P", "PNG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
    ],
)
def test_other_colour_modes(mode, image_format):
    result = decode(saved(picture(mode=mode), image_format), POLICY)
    reference = picture().convert("L").convert("RGB") if mode in ("1", "L") else picture()
    assert result.mode == "RGB"
    assert np.abs(pixels(result) - pixels(reference)).mean() < (110 if mode == "1" else 20)


def test_animations_give_their_first_frame():
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        data = saved(first, image_format, save_all=True, append_images=[second])
        red, _, blue = pixels(decode(data, POLICY)).mean((0, 1))
        assert red > 240
        assert blue < 15


def swapped_profile():
    """An ICC profile whose effect is plain: sRGB with red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_an_embedded_profile_is_applied():
    profile = swapped_profile()
    red, blue = (200, 30, 60), (60, 30, 200)
    for image_format in ("PNG", "TIFF"):
        data = saved(Image.new("RGB", (8, 8), red), image_format, icc_profile=profile)
        assert np.abs(pixels(decode(data, POLICY)) - blue).max() <= 3
    half = Image.new("RGBA", (8, 8), (*red, 255))
    half.putpixel((0, 0), (0, 0, 0, 0))
    result = pixels(decode(saved(half, "PNG", icc_profile=profile), POLICY))
    assert np.abs(result[4, 4] - blue).max() <= 3
    assert result[0, 0].tolist() == [255, 255, 255]


def test_srgb_broken_and_foreign_profiles_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, b"garbage", srgb[:200], swapped_profile()[:300], lab):
        result = decode(saved(picture(), "PNG", icc_profile=profile), POLICY)
        assert np.array_equal(pixels(result), pixels(picture()))
    grey = saved(picture(mode="L"), "PNG", icc_profile=swapped_profile())
    assert np.array_equal(pixels(decode(grey, POLICY))[..., 0], pixels(picture(mode="L")))


def test_an_archive_behind_a_picture_is_gone_after_encoding():
    polyglot = saved(picture(), "JPEG") + b"PK\3\4 secret archive"
    assert b"PK" not in encode(decode(polyglot, POLICY), "png")


# ---- hostile bytes -------------------------------------------------------------------------------

# Peak memory in KiB, of this process alone: what getrusage says begins with the parent's.
PEAK = """
import re, resource, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    unit = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
"""

FUZZ = f"""{PEAK}
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from pnp_batch.errors import RowError
from pnp_batch.source import SourcePolicy, decode
policy = SourcePolicy(base=".", max_pixels=1_000_000)
before = peak()
good = bad = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        image = decode(path.read_bytes(), policy)
    except RowError as error:
        bad += 1
        assert str(error).isprintable() and len(str(error)) < 1000, path
    else:
        good += 1
        assert image.mode == "RGB" and image.width * image.height <= 1_000_000, path
    grown = peak() - before
    assert grown < 100_000, (path, grown)
print(good, bad)
"""


def mutated(data, dice):
    """Random bytes changed, numbers made extreme, parts cut, repeated or taken out."""
    data = bytearray(data)
    if dice.randrange(20) == 0:
        return bytes(data[: dice.randrange(len(data))])
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        at = dice.randrange(min(len(data), dice.choice((32, 200, 10**6))))
        kind = dice.randrange(5)
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            data[at : at + 4] = dice.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
        elif kind == 3:
            del data[at : at + dice.randrange(1, 8)]
        else:
            data[at:at] = data[at : at + 50]
    return bytes(data)


def test_mutated_pictures_are_pictures_or_row_errors_in_bounded_memory(tmp_path):
    dice = random.Random(0)
    profile = swapped_profile()
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = picture(mode="P")
    grey16 = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    seeds = [
        *(saved(picture(), image_format) for image_format in FORMATS),
        saved(picture(), "JPEG", exif=exif, icc_profile=profile, progressive=True),
        saved(with_alpha("RGBA"), "PNG", exif=exif, icc_profile=profile),
        saved(palette, "PNG", transparency=b"\0\x80\xff"),
        saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        saved(grey16, "PNG"),
        saved(picture(mode="CMYK"), "JPEG"),
        saved(picture(mode="F"), "TIFF"),
        *(saved(picture(), "TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "tiff_deflate")),
        saved(with_alpha("RGBA"), "WEBP", lossless=True, exif=exif),
        saved(picture(), "WEBP", save_all=True, append_images=[picture().rotate(180)]),
    ]
    for number, seed in enumerate(seeds):
        for k in range(40):
            (tmp_path / f"{number:02}-{k:03}").write_bytes(mutated(seed, dice) if k else seed)
    command = [sys.executable, "-W", "error", "-c", FUZZ, str(tmp_path), str(4 * 2**30)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    good, bad = map(int, done.stdout.split())
    assert good + bad == 40 * len(seeds)
    assert min(good, bad) > 50


# ---- squares and files ---------------------------------------------------------------------------


@pytest.mark.parametrize("fit", config.FITS)
@pytest.mark.parametrize("size", [(64, 64), (64, 48), (31, 97), (500, 20), (1, 1), (128, 64)])
def test_every_fit_gives_a_square(fit, size):
    square = prepare(picture(*size), 64, fit)
    assert (square.mode, square.size) == ("RGB", (64, 64))
    if size == (64, 64):
        assert np.array_equal(pixels(square), pixels(picture(64, 64)))


def test_crop_takes_the_middle_and_stretch_takes_all():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    cropped = pixels(prepare(wide, 50, "crop"))
    assert (cropped[:, 3:-3] == (0, 255, 0)).all()
    assert cropped[..., 1].min() > 200
    stretched = pixels(prepare(wide, 60, "stretch"))
    assert stretched[30, 5].tolist() == stretched[30, 55].tolist() == [255, 0, 0]
    assert stretched[30, 30].tolist() == [0, 255, 0]


def test_crop_and_pad_do_not_resample_what_already_fits():
    wide = picture(80, 64)
    assert np.array_equal(pixels(prepare(wide, 64, "crop")), pixels(wide)[:, 8:72])
    padded = pixels(prepare(wide, 80, "pad"))
    assert np.array_equal(padded[8:72], pixels(wide))
    assert (np.delete(padded, np.s_[8:72], 0) == 255).all()


EXTREME = f"""{PEAK}
from PIL import Image
from pnp_batch.source import prepare
before = peak()
for fit in ("crop", "stretch", "pad"):
    assert prepare(Image.new("RGB", (8_000_000, 1)), 256, fit).size == (256, 256)
    assert prepare(Image.new("RGB", (1, 2_000_000)), 256, fit).size == (256, 256)
print(peak() - before)
"""


def test_extreme_shapes_cost_no_memory():
    command = [sys.executable, "-W", "error", "-c", EXTREME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000


@pytest.mark.parametrize("image_format", config.IMAGE_FORMATS)
def test_encoded_bytes_are_the_same_each_time_and_carry_nothing_else(image_format):
    image = picture()
    plain = encode(image, image_format)
    image.info = {"icc_profile": swapped_profile(), "comment": b"x", "dpi": (1, 1)}
    assert encode(picture(), image_format) == plain
    assert len(encode(image, image_format)) < len(plain) + 200
    result = decode(plain, POLICY)
    bound = 12 if image_format == "jpg" else 0
    assert np.abs(pixels(result) - pixels(picture())).max() <= bound


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidConfig) as refused:
        prepare(picture(), 64, "crp")
    assert "'crop'" in refused.value.hint
    with pytest.raises(InvalidConfig) as refused:
        encode(picture(), "jpeg")
    assert "'jpg'" in refused.value.hint
