"""Images by http(s), from allowed hosts and checked addresses only.

In: a URL, the job's `SourcePolicy` and the time that is left. Out: the body. Redirects are
followed by hand, each with all checks, and the socket connects to the very address that was
checked, so that a second answer of the name server changes nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from pnp_batch.errors import ImageForbidden, ImageNotFound, StorageError
from pnp_batch.source.limits import Clock, check_bytes
from pnp_batch.source.policy import WEB_SCHEMES, SourcePolicy, shown

MAX_REDIRECTS = 5

_MOVED = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_CHUNK = 2**16
_HEADERS = {"User-Agent": "pnp-batch", "Accept": "image/*", "Accept-Encoding": "identity"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class _Place:
    secure: bool
    host: str
    port: int
    target: str
    addresses: tuple[Any, ...]  # as getaddrinfo gives them


def read_web(uri: str, policy: SourcePolicy, clock: Clock) -> bytes:
    """The body behind `uri`. Raises a `RowError`, `OSError`, or an error of `http.client`."""
    url = uri
    for _ in range(MAX_REDIRECTS + 1):
        # A refused redirect names the row's image too, which the target alone would not tell.
        name = shown(uri) if url == uri else f"{shown(uri)}: redirected to {shown(url)}"
        with _response(_checked(url, name, policy), clock) as response:
            if response.status not in _MOVED:
                return _body(response, uri, policy, clock)
            location = response.getheader("Location")
        if not location:
            raise StorageError(f"{shown(uri)}: redirected to nowhere; check the URL")
        try:
            url = urljoin(url, location)
        except ValueError as error:
            raise ImageForbidden(f"{shown(uri)}: redirected to what is no URL") from error
    raise StorageError(f"{shown(uri)}: more than {MAX_REDIRECTS} redirects; use the final URL")


def _checked(url: str, name: str, policy: SourcePolicy) -> _Place:
    try:
        parts = urlsplit(url)
        host, port = _canonical(parts.hostname or ""), parts.port
    except ValueError as error:
        raise ImageForbidden(f"{name}: not a valid URL; correct it") from error
    if parts.scheme not in WEB_SCHEMES or not host:
        raise ImageForbidden(f"{name}: not an http(s) URL with a host")
    if "@" in parts.netloc:
        raise ImageForbidden(f"{name}: user names are not allowed in a URL; leave it out")
    secure = parts.scheme == "https"
    port = port if port is not None else (443 if secure else 80)
    if not _listed(host, port, policy):
        raise ImageForbidden(
            f"{name}: the host is not allowed; to allow it add --allow-host {host}"
        )
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in addresses:
        _check_address(str(address[0]), port, name, policy)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return _Place(secure, host, port, f"{target}?{query}" if query else target, tuple(addresses))


def _check_address(address: str, port: int, name: str, policy: SourcePolicy) -> None:
    ip = _embedded(ipaddress.ip_address(address))
    public = ip.is_global and not ip.is_multicast and not getattr(ip, "is_site_local", False)
    if not public and not _listed(str(ip), port, policy):
        raise ImageForbidden(
            f"{name}: the host is at {ip}, which is no public address; "
            f"to allow it add --allow-host {ip}"
        )


def _embedded(ip: _IPAddress) -> _IPAddress:
    """The IPv4 address that an IPv6 address leads to, where it does."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _listed(host: str, port: int, policy: SourcePolicy) -> bool:
    return any(entry in ((host, None), (host, port)) for entry in map(_entry, policy.hosts))


@lru_cache(maxsize=256)
def _entry(text: str) -> tuple[str, int | None]:
    with suppress(ValueError):
        return str(ipaddress.ip_address(text)), None
    with suppress(ValueError):
        parts = urlsplit("//" + text)
        return _canonical(parts.hostname or ""), parts.port
    return text, -1  # names no host, allows nothing


def _canonical(host: str) -> str:
    with suppress(ValueError):
        return str(_embedded(ipaddress.ip_address(host)))
    return host.rstrip(".").encode("idna").decode().lower()


@contextmanager
def _response(place: _Place, clock: Clock) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(place.host, place.port)
    sock = _connect(place, clock)
    if place.secure:
        connection = http.client.HTTPSConnection(place.host, place.port, context=_tls())
        sock = _tls().wrap_socket(sock, server_hostname=place.host, do_handshake_on_connect=False)
    with sock, _cut_off(sock, clock):
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection.sock = sock
        connection.request("GET", place.target, headers=_HEADERS)
        with connection.getresponse() as response:
            yield response


def _connect(place: _Place, clock: Clock) -> socket.socket:
    failure = OSError("the host has no address")
    for family, kind, protocol, _, address in place.addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(clock.left())
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


@contextmanager
def _cut_off(sock: socket.socket, clock: Clock) -> Iterator[None]:
    """Ends the connection in time: a byte now and then never meets the socket's own limit."""
    timer = threading.Timer(clock.left(), _hang_up, (sock,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _body(
    response: http.client.HTTPResponse, uri: str, policy: SourcePolicy, clock: Clock
) -> bytes:
    if response.status in _GONE:
        raise ImageNotFound(f"{shown(uri)}: the server has no such image ({response.status})")
    if response.status != 200:
        raise StorageError(f"{shown(uri)}: the server answered {response.status}; retry the row")
    size = response.length
    check_bytes(size or 0, policy, uri)
    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        check_bytes(len(data), policy, uri)
        clock.left()
    clock.left()  # a body that was cut off by the time limit looks like one that has ended
    if size is not None and len(data) != size:
        raise StorageError(f"{shown(uri)}: {len(data)} of {size} bytes came; retry the row")
    return bytes(data)
