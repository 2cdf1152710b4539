"""Process tests have a server each: what one leaves (leases, for one) must not be there for the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import start_server


@pytest.fixture
def redis_url() -> Iterator[str]:
    server = start_server()
    yield server.url
    server.stop()
