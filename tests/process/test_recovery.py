"""Rows of the catalogue of failures, each with real processes: what dies, and that every client gets its tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx2
import pytest

from penstock.backends.mock.text import verify_chain
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import Server, redis_client, start_server
from tests.support.waiting import PATIENCE, wait_until, wait_until_async

pytestmark = pytest.mark.timeout(90)

CHAIN = "mock=mock:step_ms=20,chain=true"
NUM, TOKENS = 40, 150  # three seconds: streams that still run at the strike, on a busy machine too
SHARED = ("--max-batch-size", "16", "--max-batches", "2")  # one worker alone has no room for all of them


@pytest.fixture
def server() -> Iterator[Server]:
    server = start_server()
    yield server
    server.stop()


@pytest.fixture
def fleet(server: Server) -> Iterator[Site]:
    with site(server.url) as built:
        for _ in range(2):
            built.worker("--model", CHAIN, *SHARED)
        built.gateway()
        yield built


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


async def _num_running(http: httpx2.AsyncClient, url: str) -> float:
    return reading.metric((await http.get(f"{url}/metrics")).text, "penstock_running")


async def _under_load(
    http: httpx2.AsyncClient, url: str, strike: Callable[[], Awaitable[None]], num: int = NUM
) -> list[reading.Answer]:
    """`num` chained streams, and `strike()` once all of them have begun; every answer must be whole."""
    tasks = [
        asyncio.create_task(reading.stream(http, url, prompt=f"load {i}", max_tokens=TOKENS, queue_events=False))
        for i in range(num)
    ]

    async def all_flow() -> bool:
        page = (await http.get(f"{url}/metrics")).text
        return reading.metric(page, "penstock_time_to_first_token_seconds_count") >= num

    await wait_until_async(all_flow, "all streams have begun")
    await strike()
    answers = await asyncio.gather(*tasks)
    for answer in answers:
        assert (answer.end, len(answer.tokens)) == ("done", TOKENS), answer.data
        assert verify_chain(answer.tokens) is None
    return answers


def _attempts(answers: list[reading.Answer]) -> int:
    """How many attempts there were in all; more than one a stream means that something was continued."""
    return len({event_id.rpartition("-")[0] for answer in answers for event_id in answer.ids})


async def _balanced(server: Server) -> None:
    """The queue and the workers' lists are empty, and every key expires."""
    client = redis_client(server.url)
    try:

        def is_empty() -> bool:
            lists = [key for key in client.scan_iter("*") if client.type(key) == b"list" and b"caller" not in key]
            return not any(client.llen(key) for key in lists)

        await wait_until(is_empty, "queue and worker lists are empty")
        eternal = [key for key in client.scan_iter("*") if client.ttl(key) == -1]
        assert eternal == []
    finally:
        client.close()


async def test_a_worker_is_killed(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    async def kill() -> None:
        os.kill(_engine(fleet.programs[0].pid), signal.SIGKILL)

    answers = await _under_load(http, fleet.gateways[0], kill)
    assert _attempts(answers) > NUM, "nothing was continued: the test proves nothing"
    await _balanced(server)


async def test_a_worker_freezes_past_its_lease_and_wakes(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    async def freeze() -> None:
        pid = _engine(fleet.programs[0].pid)
        os.kill(pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(4.0, os.kill, pid, signal.SIGCONT)

    answers = await _under_load(http, fleet.gateways[0], freeze)
    assert _attempts(answers) > NUM
    await _balanced(server)


async def test_the_subscription_is_cut(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    client = redis_client(server.url)

    async def cut() -> None:
        for _ in range(3):
            client.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.3)  # the next cut finds the new subscription

    try:
        await _under_load(http, fleet.gateways[0], cut)
        page = (await http.get(f"{fleet.gateways[0]}/metrics")).text
        assert reading.metric(page, "penstock_log_reads_total", reason="subscription") > 0
    finally:
        client.close()
    await _balanced(server)


async def test_redis_forgets_everything(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    client = redis_client(server.url)

    async def forget() -> None:
        client.flushall()

    try:
        answers = await _under_load(http, fleet.gateways[0], forget)
    finally:
        client.close()
    assert _attempts(answers) > NUM
    await _balanced(server)


@pytest.mark.parametrize("away_s", [0.2, 2.0])
async def test_redis_dies_and_restarts_empty(
    fleet: Site, http: httpx2.AsyncClient, server: Server, away_s: float
) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    again: list[Server] = []

    async def restart() -> None:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        await asyncio.sleep(away_s)
        again.append(start_server(port=port))

    try:
        started = time.monotonic()
        await _under_load(http, fleet.gateways[0], restart)
        assert time.monotonic() - started < away_s + 20.0 * PATIENCE
        await _balanced(again[0])
    finally:
        fleet.stop()
        for one in again:
            one.stop()


async def test_redis_freezes(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    thawed = asyncio.Event()

    def thaw() -> None:
        os.kill(server.pid, signal.SIGCONT)
        thawed.set()

    async def freeze() -> None:
        os.kill(server.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(3.0, thaw)

    await _under_load(http, fleet.gateways[0], freeze)
    await thawed.wait()  # what follows blocks the loop, and with it the end of the freeze
    await _balanced(server)


async def test_a_gateway_dies_and_the_client_continues_elsewhere(fleet: Site, http: httpx2.AsyncClient) -> None:
    doomed = fleet.gateway()
    here, there = fleet.gateways[1], fleet.gateways[0]
    request_id = ""
    received: list[str] = []
    seen: list[str] = []
    try:
        async with http.stream(
            "POST",
            f"{here}/v1/generate",
            json={"prompt": "elsewhere", "max_tokens": TOKENS, "stream": True, "on_disconnect": "resume"},
        ) as response:
            request_id = response.headers["x-request-id"]
            async for event in reading.events(response):
                received.append(event.data)
                seen.append(event.id)
                if len(received) == 10:
                    doomed.signal(signal.SIGKILL)
    except httpx2.TransportError:
        pass  # it was killed under us: that is the point
    assert 10 <= len(received) < TOKENS
    async with http.stream(
        "GET", f"{there}/v1/requests/{request_id}/events", headers={"last-event-id": seen[-1]}
    ) as response:
        rest = [event async for event in reading.events(response)]
    texts = reading.texts(received) + reading.texts([event.data for event in rest if event.event == "token"])
    assert len(texts) == TOKENS
    assert verify_chain(texts) is None
    assert rest[-1].event == "done"


async def test_a_poison_request_takes_no_other_with_it(server: Server, http: httpx2.AsyncClient) -> None:
    with site(server.url) as fleet:
        for _ in range(4):  # it ends three; the fourth finds it out
            fleet.worker("--model", "mock=mock:step_ms=20,scripted=true")
        fleet.gateway()
        url = fleet.gateways[0]
        others = [
            asyncio.create_task(reading.stream(http, url, prompt=f"good {i}", max_tokens=TOKENS)) for i in range(20)
        ]

        async def all_run() -> bool:
            return await _num_running(http, url) == 20

        await wait_until_async(all_run, "the good ones run")
        poison = await reading.stream(http, url, prompt="[[crash]]", max_tokens=TOKENS)
        reason = poison.data["error"]["code"]
        assert reason == "request_poisoned"
        answers = await asyncio.gather(*others)
        assert {(answer.end, len(answer.tokens)) for answer in answers} == {("done", TOKENS)}


async def test_clients_that_leave_free_their_slots(fleet: Site, http: httpx2.AsyncClient, server: Server) -> None:
    url = fleet.gateways[0]

    async def leave(i: int) -> None:
        async with reading.client() as own:
            if i % 2:
                await reading.stream(own, url, stop_after=1, prompt=f"leave {i}", max_tokens=8000)
            else:
                task = asyncio.create_task(reading.whole(own, url, prompt=f"leave {i}", max_tokens=8000))
                await asyncio.sleep(0.3)
                task.cancel()

    await asyncio.gather(*(leave(i) for i in range(40)))

    async def all_gone() -> bool:
        pages = [(await http.get(f"{where}/metrics")).text for where in fleet.workers]
        free = sum(reading.metric(page, "penstock_slots_free") for page in pages)
        return free == sum(reading.metric(page, "penstock_slots") for page in pages) > 0

    await wait_until_async(all_gone, "all slots are free")
    await _balanced(server)


async def test_a_slow_reader_harms_no_other_client_and_is_cut(server: Server, http: httpx2.AsyncClient) -> None:
    with site(server.url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=0")
        fleet.gateway("--slow-reader-s", "1.5", "--max-tokens-limit", "100000")
        host, port = fleet.gateways[0].removeprefix("http://").split(":")
        body = b'{"prompt":"slow","max_tokens":50000,"stream":true}'
        head = "POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        stuck = []
        for _ in range(10):
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel would read it all for us
            small.connect((host, int(port)))
            reader, writer = await asyncio.open_connection(sock=small, limit=1024)
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            stuck.append((reader, writer))
        answer = await reading.stream(http, fleet.gateways[0], prompt="quick", max_tokens=50)
        assert (answer.end, len(answer.tokens)) == ("done", 50)
        await wait_until(lambda: fleet.programs[1].output().count("the client does not read") == 10, "all are cut")
        for _, writer in stuck:
            writer.close()


def _engine(pid: int) -> int:
    """The process that runs the engine: a supervised worker's child, or the worker itself."""
    from pathlib import Path

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid
