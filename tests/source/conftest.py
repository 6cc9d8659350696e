"""A manifest's folder, servers, a name server, and retries that do not wait."""

from __future__ import annotations

import random
import socket

import pytest

from tests.pictures import PNG
from tests.source.site import serving


@pytest.fixture
def base(tmp_path):
    """The manifest's folder with one picture in it, and one picture outside."""
    folder = tmp_path / "manifest"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a b.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    return folder


@pytest.fixture
def site():
    """A server."""
    with serving() as server:
        yield server


@pytest.fixture
def canary():
    """A server that nobody may reach."""
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


@pytest.fixture
def at_once(monkeypatch):
    """Retries follow each other without the wait, whose length is drawn."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
