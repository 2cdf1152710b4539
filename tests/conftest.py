"""Fixtures that every ring of the tests shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Every real server present, by name, each in a process of its own for the whole session."""
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def redis_url(servers: Servers) -> str:
    """A real server, shared by the session: use a pool or ids of your own."""
    return servers.get().url
