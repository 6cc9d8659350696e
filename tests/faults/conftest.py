"""The servers, one of each for the session, and a proxy before them for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import proxy, servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.Server]:
    """A moto server; tests share its bucket, each with a prefix of its own."""
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[servers.Server]:
    """A SeaweedFS server; tests share its bucket, each with a prefix of its own."""
    with servers.seaweedfs() as server:
        yield server


@pytest.fixture(params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """Each server in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def faulty(server: servers.Server) -> Iterator[proxy.Proxy]:
    """A proxy before the server, as yet without faults."""
    with proxy.running(server.store.endpoint) as before:
        yield before
