"""Deaths on a cluster, a failover by sentinels, and a master that is none for a while: real processes under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import redis

from penstock.backends.mock.text import verify_chain
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import Server, start_server
from tests.support.topologies import SERVICE, Cluster, Sentinel, start_cluster, start_sentinel
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(60)

CHAIN = "mock=mock:step_ms=20,chain=true"
NUM, TOKENS = 30, 60
LONG = 250  # five seconds: streams that still run when a busy machine strikes, or when sentinels have agreed
QUEUE = "inference:queue"


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


def _fleet(url: str) -> Iterator[Site]:
    with site(url) as built:
        for _ in range(2):
            # One worker alone has no room for all streams.
            built.worker("--model", CHAIN, "--max-batch-size", "12", "--max-batches", "2")
        built.gateway()
        yield built


async def _under_load(
    http: httpx2.AsyncClient, url: str, strike: Callable[[], Awaitable[None]], num_tokens: int = TOKENS
) -> list[reading.Answer]:
    """`NUM` streams, and `strike()` once all have begun. Each has its own tokens, each once, and one end."""
    before = await _num_begun(http, url)
    load = [
        asyncio.create_task(reading.stream(http, url, prompt=f"load {i}", max_tokens=num_tokens, queue_events=False))
        for i in range(NUM)
    ]

    async def all_flow() -> bool:
        return await _num_begun(http, url) >= before + NUM

    await wait_until_async(all_flow, "all streams have begun")
    await strike()
    answers = await asyncio.gather(*load)
    for answer in answers:
        assert verify_chain(answer.tokens) is None
    return answers


async def _num_begun(http: httpx2.AsyncClient, url: str) -> float:
    return reading.metric((await http.get(f"{url}/metrics")).text, "penstock_time_to_first_token_seconds_count")


def _whole(answers: list[reading.Answer], num_tokens: int = TOKENS) -> list[reading.Answer]:
    return [answer for answer in answers if (answer.end, len(answer.tokens)) == ("done", num_tokens)]


def _num_attempts(answers: list[reading.Answer]) -> int:
    """How many attempts there were in all; more than one a stream means that something was continued."""
    return len({event_id.rpartition("-")[0] for answer in answers for event_id in answer.ids})


async def _serves(http: httpx2.AsyncClient, url: str) -> None:
    """New requests are answered, whole, without delay."""
    answers = await asyncio.gather(*(reading.stream(http, url, prompt=f"new {i}", max_tokens=5) for i in range(20)))
    assert [(answer.end, len(answer.tokens)) for answer in answers] == [("done", 5)] * 20


async def _balanced(clients: list[redis.Redis]) -> None:
    """The queue and the workers' lists are empty, and every key expires."""

    def held() -> list[str]:
        return [
            key
            for client in clients
            for key in client.scan_iter(f"*{QUEUE}*", _type="list")
            if ":dead" not in key and client.llen(key)
        ]

    await wait_until(lambda: held() == [], "queue and worker lists to be empty")
    assert [key for client in clients for key in client.scan_iter() if client.ttl(key) == -1] == []


def _engine(pid: int) -> int:
    """The process that runs the engine: a supervised worker's child, or the worker itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three masters; the one with the queue has a replica. The tests share it, in any order."""
    topology = start_cluster(replicas_of=[Cluster("", []).owner(QUEUE)])
    yield topology
    topology.stop()


@pytest.fixture(scope="module")
def on_cluster(cluster: Cluster) -> Iterator[Site]:
    yield from _fleet(cluster.url)


@contextmanager
def _masters(cluster: Cluster) -> Iterator[list[redis.Redis]]:
    """Those that are alive."""
    clients = [cluster.client(i) for i, server in enumerate(cluster.servers) if server.process.poll() is None]
    yield [client for client in clients if client.role()[0] == "master"]
    for client in clients:
        client.close()


async def test_a_worker_is_killed_on_a_cluster(on_cluster: Site, http: httpx2.AsyncClient, cluster: Cluster) -> None:
    async def kill() -> None:
        os.kill(_engine(on_cluster.programs[0].pid), signal.SIGKILL)

    answers = await _under_load(http, on_cluster.gateways[0], kill, LONG)
    assert len(_whole(answers, LONG)) == NUM, [answer.data for answer in answers if answer.end != "done"]
    assert _num_attempts(answers) > NUM, "nothing was continued: the test proves nothing"
    with _masters(cluster) as masters:
        assert len(masters) == 3
        assert all(client.keys("{inference:response:*}:job") for client in masters), "requests are on every node"
        await _balanced(masters)


async def test_the_node_with_the_queue_is_killed(on_cluster: Site, http: httpx2.AsyncClient, cluster: Cluster) -> None:
    victim = cluster.servers[cluster.owner(QUEUE)]

    async def kill() -> None:
        victim.process.kill()
        victim.process.wait()

    answers = await _under_load(http, on_cluster.gateways[0], kill, LONG)
    assert len(_whole(answers, LONG)) == NUM, [answer.data for answer in answers if answer.end != "done"]
    on_cluster.programs[-1].wait_for(f"{on_cluster.gateways[0]}/readyz")
    await _serves(http, on_cluster.gateways[0])
    with _masters(cluster) as masters:
        assert len(masters) == 3
        await _balanced(masters)


# ── sentinels ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def guarded() -> Iterator[Sentinel]:
    topology = start_sentinel()
    yield topology
    topology.stop()


@pytest.fixture
def on_guarded(guarded: Sentinel) -> Iterator[Site]:
    yield from _fleet(guarded.url)


async def _failed_over(
    fleet: Site, http: httpx2.AsyncClient, guarded: Sentinel, strike: Callable[[], Awaitable[None]]
) -> None:
    before, url = guarded.master_port, fleet.gateways[0]
    answers = await _under_load(http, url, strike, LONG)
    assert len(_whole(answers, LONG)) == NUM, [answer.data for answer in answers if answer.end != "done"]
    assert guarded.master_port != before, "there was no failover: the test proves nothing"
    fleet.programs[-1].wait_for(f"{url}/readyz")
    await _serves(http, url)
    promoted = guarded.client(1)
    await _balanced([promoted])
    promoted.close()


async def test_the_master_is_killed(on_guarded: Site, http: httpx2.AsyncClient, guarded: Sentinel) -> None:
    async def kill() -> None:
        os.kill(guarded.servers[0].pid, signal.SIGKILL)

    await _failed_over(on_guarded, http, guarded, kill)


async def test_a_failover_is_asked_for(on_guarded: Site, http: httpx2.AsyncClient, guarded: Sentinel) -> None:
    async def fail_over() -> None:
        with guarded.sentinel as sentinel:
            sentinel.sentinel_failover(SERVICE)

    await _failed_over(on_guarded, http, guarded, fail_over)


# ── one server ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Iterator[Server]:
    server = start_server()
    yield server
    server.stop()


@pytest.fixture
def on_server(server: Server) -> Iterator[Site]:
    yield from _fleet(server.url)


async def test_a_master_that_is_none_for_a_while(on_server: Site, http: httpx2.AsyncClient, server: Server) -> None:
    """READONLY for two seconds: nothing is lost, and a client sees a pause only."""
    url = on_server.gateways[0]
    with redis.Redis(port=server.port, decode_responses=True) as client:

        async def demote() -> None:
            client.replicaof("127.0.0.1", "1")
            await asyncio.sleep(2.0)  # the fault's length, not a wait
            client.replicaof("NO", "ONE")

        answers = await _under_load(http, url, demote)
        assert len(_whole(answers)) == NUM, [answer.data for answer in answers if answer.end != "done"]
        on_server.programs[-1].wait_for(f"{url}/readyz")
        await _serves(http, url)
        await _balanced([client])
