"""Fixtures that every ring of the tests shares."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.servers import Servers

settings.register_profile("penstock", deadline=None)  # how long an example takes says nothing on a busy machine
settings.register_profile("fixed", deadline=None, derandomize=True)  # CI judges a change, not the luck of the draw
settings.register_profile("deep", deadline=None, max_examples=3000)  # for -m hypothesis --hypothesis-profile=deep
settings.load_profile("penstock")


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


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A test that configures logging leaves no handler behind that writes to a closed stream."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
