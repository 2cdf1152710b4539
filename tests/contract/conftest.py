"""The stores that the contract suite runs over: memory, every real server present, and Redis in each form that users
have it in (one of the servers; which one makes no difference there)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from penstock.transports import Transport
from tests.support.servers import Servers, find_servers, redis_client
from tests.support.stores import MemoryStore, ModelOfStore, RedisStore, Store
from tests.support.topologies import KINDS, NotHere, Topologies

REAL = sorted(find_servers())


def _emptied(servers: Servers, name: str) -> RedisStore:
    server = servers.get(name)
    with redis_client(server.url) as client:
        client.flushall()
    return RedisStore(name, server.url)


def _topology(topologies: Topologies, kind: str) -> RedisStore:
    try:
        topology = topologies.get(kind)
    except NotHere as error:
        pytest.skip(str(error))
    topology.flush()
    return RedisStore(kind, topology.url, topology.masters)


def _check_what_is_left(store: RedisStore) -> None:
    """Every key expires; only a worker's list, bounded by its slots and emptied by reap, may be without for a while."""
    for client in store.clients or (redis_client(store.url, decode_responses=True),):
        with client:
            left = [key for key in client.scan_iter() if client.pttl(key) == -1 and "}:worker:" not in key]
        assert left == [], "these keys do not expire"


@pytest.fixture(scope="session")
def topologies() -> Iterator[Topologies]:
    topologies = Topologies()
    yield topologies
    topologies.stop()


@pytest.fixture(params=["memory", "model", *REAL, *KINDS])
async def store(request: pytest.FixtureRequest, servers: Servers, topologies: Topologies) -> AsyncIterator[Store]:
    store: Store
    if request.param == "memory":
        store = MemoryStore()
    elif request.param == "model":
        store = ModelOfStore()
    elif request.param in KINDS:
        store = _topology(topologies, request.param)
    else:
        store = _emptied(servers, request.param)
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
    with redis_client(real.url, decode_responses=True) as client:
        yield client
