"""The stores that the contract suite runs over: memory, and every real server present."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

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


def _check_what_is_left(store: RedisStore) -> None:
    """Every key expires; only a worker's list, bounded by its slots and emptied by reap, may be without for a while."""
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        left = [key for key in client.scan_iter() if client.pttl(key) == -1 and "}:worker:" not in key]
    assert left == [], "these keys would stay for ever"


@pytest.fixture(params=["memory", *REAL])
async def store(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Store]:
    store: Store = MemoryStore() if request.param == "memory" else _emptied(servers, request.param)
    yield store
    await store.close()
    if isinstance(store, RedisStore):
        _check_what_is_left(store)


@pytest.fixture(params=REAL)
async def real(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[RedisStore]:
    store = _emptied(servers, request.param)
    yield store
    await store.close()
    _check_what_is_left(store)


@pytest.fixture
async def transport(store: Store) -> Transport:
    """One process' way to the store."""
    return await store.transport()


@pytest.fixture
def client(real: RedisStore) -> Iterator[redis.Redis]:
    """A plain client of the same server, to look at what is there and to break it."""
    with redis.Redis.from_url(real.url, decode_responses=True) as client:
        yield client
