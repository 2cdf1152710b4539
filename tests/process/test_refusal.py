"""A store that would lose requests quietly is refused at start-up: a message, and exit status 2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process.programs import Program, free_port
from tests.servers import start_server

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def evicting() -> Iterator[str]:
    server = start_server(None, "--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru", password="hush")
    yield server.url
    server.stop()


@pytest.mark.parametrize(
    "command",
    [
        ("gateway", "--port"),
        ("gateway", "--processes", "2", "--port"),
        ("worker", "--metrics-port"),
        ("serve", "--port"),
    ],
    ids=["gateway", "gateways", "worker", "serve"],
)
def test_an_evicting_server_is_refused(evicting: str, command: tuple[str, ...]) -> None:
    program = Program(*command, str(free_port()), "--redis-url", evicting)
    try:
        assert program.wait(60.0) == 2, program.output()
        assert "penstock: Redis, memory policy: allkeys-lru" in program.output()
        assert "noeviction" in program.output()
        assert "hush" not in program.output()
        assert "Traceback" not in program.output()
    finally:
        program.close()
