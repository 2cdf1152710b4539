"""The stores that the contract suite runs over: memory, and every real server present."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from penstock.transports import Transport
from tests.contract.stores import MemoryStore, RedisStore, Store
from tests.servers import Servers, find_servers

REAL = sorted(find_servers())


def _emptied(servers: Servers, name: str) -> RedisStore:
    server = servers.get(name)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return RedisStore(name, server.url)


@pytest.fixture(params=["memory", *REAL])
async def store(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Store]:
    store: Store = MemoryStore() if request.param == "memory" else _emptied(servers, request.param)
    yield store
    await store.close()


@pytest.fixture(params=REAL)
async def real(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[RedisStore]:
    store = _emptied(servers, request.param)
    yield store
    await store.close()


@pytest.fixture
async def transport(store: Store) -> Transport:
    """One process' way to the store."""
    return await store.transport()
