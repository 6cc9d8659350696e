"""Which hosts and addresses get a request, redirects included, and who they prove to be."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from pnp_batch.errors import ImageForbidden, StorageError
from pnp_batch.source import SourcePolicy, read_source, web
from tests.pictures import PNG
from tests.source.certificate import self_signed
from tests.source.site import SECRET, policy_for


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


def test_https_is_verified_against_the_name(site, canary, names, tmp_path, monkeypatch):
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
