"""A store that comes back without its last moments, or empty: what was completed stays so, a key names one request."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import redis_client, start_server
from tests.support.waiting import PATIENCE, wait_until_async

pytestmark = pytest.mark.timeout(120)

MODEL = "mock=mock:step_ms=5,chain=true"
LAGGING = ("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes")


class Store:
    """A server with an append-only file, that can be killed and come back as it was at `remember()`."""

    def __init__(self) -> None:
        self.server = start_server(None, *LAGGING)
        self.url = self.server.url
        self._sizes: dict[Any, int] = {}

    def remember(self) -> None:
        self._sizes = self.server.log_sizes()

    def come_back(self) -> None:
        self.server.kill()
        self.server.cut_back(self._sizes)
        before = self.server
        self.server = start_server(before.name, *LAGGING, port=before.port, directory=before.directory)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.server.stop()


@contextmanager
def _fleet(url: str, *args: str, gateways: int = 2) -> Iterator[Site]:
    with site(url) as built:
        built.worker("--model", MODEL)
        for _ in range(gateways):
            built.gateway(*args)
        yield built


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with reading.client() as client:
        yield client


async def _generate(http: httpx2.AsyncClient, url: str, key: str = "", **body: Any) -> httpx2.Response:
    headers = {"idempotency-key": key} if key else {}
    return await http.post(f"{url}/v1/generate", json={"prompt": "once", "max_tokens": 20, **body}, headers=headers)


async def _state(http: httpx2.AsyncClient, url: str, request_id: str) -> str:
    """Its state, or the status and code of a refusal."""
    answer = await http.get(f"{url}/v1/requests/{request_id}")
    said = answer.json()
    return str(said["state"]) if answer.status_code == 200 else f"{answer.status_code} {said['error']['code']}"


async def _watch(http: httpx2.AsyncClient, url: str, request_id: str, for_s: float) -> set[str]:
    """Every state that a poller sees meanwhile."""
    seen, until = set(), time.monotonic() + for_s
    while time.monotonic() < until:
        seen.add(await _state(http, url, request_id))
        await asyncio.sleep(0.02)
    return seen


async def _until(http: httpx2.AsyncClient, url: str, request_id: str, state: str) -> None:
    async def is_so() -> bool:
        return await _state(http, url, request_id) == state

    await wait_until_async(is_so, f"it is {state}")


async def test_a_completed_request_stays_completed(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url) as fleet:
        here, there = fleet.gateways
        request_id = (await _generate(http, here, background=True, max_tokens=200)).json()["request_id"]
        await asyncio.sleep(0.4)
        store.remember()
        await _until(http, here, request_id, "completed")
        text = (await http.get(f"{here}/v1/requests/{request_id}")).json()["text"]
        store.come_back()
        seen = await _watch(http, here, request_id, 4.0)
        assert seen <= {"completed", "503 store_unavailable"}
        assert "completed" in seen
        await _until(http, there, request_id, "completed")
        assert (await http.get(f"{there}/v1/requests/{request_id}")).json()["text"] == text


async def test_an_answer_with_a_key_stays_its_answer(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url) as fleet:
        here, there = fleet.gateways
        answering = asyncio.create_task(_generate(http, here, "k", max_tokens=200))
        await asyncio.sleep(0.4)
        store.remember()
        first = await answering
        assert first.status_code == 200
        store.come_back()
        for url in (here, there, here, there):
            again = await _generate(http, url, "k", max_tokens=200)
            while again.status_code == 503:
                await asyncio.sleep(0.1)
                again = await _generate(http, url, "k", max_tokens=200)
            assert (again.status_code, again.json()["text"]) == (200, first.json()["text"])
            assert again.json()["request_id"] == first.json()["request_id"]
            assert again.headers["idempotent-replayed"] == "true"


async def test_a_finished_result_outlives_an_empty_store(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url) as fleet, redis_client(store.url) as client:
        here, there = fleet.gateways
        request_id = (await _generate(http, here, background=True)).json()["request_id"]
        await _until(http, here, request_id, "completed")
        client.flushall()
        seen = await asyncio.gather(*(_watch(http, url, request_id, 2.0) for url in (here, there)))
        assert seen[0] == {"completed"}
        assert seen[1] <= {"completed", "503 store_unavailable"}
        await _until(http, there, request_id, "completed")


async def test_an_admitted_live_request_is_never_unknown(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url) as fleet, redis_client(store.url) as client:
        here, there = fleet.gateways
        body = {"background": True, "max_tokens": 1500}
        request_id = (await _generate(http, here, "k", **body)).json()["request_id"]
        await _until(http, there, request_id, "running")
        client.flushall()
        same = [asyncio.create_task(_generate(http, url, "k", **body)) for url in (here, there)]
        seen = await asyncio.gather(*(_watch(http, url, request_id, 2.0) for url in (here, there)))
        assert seen[0] <= {"queued", "running"}
        assert seen[1] <= {"queued", "running", "503 store_unavailable"}
        for task in same[:1]:  # at the gateway that holds it
            assert (await task).json()["request_id"] == request_id
        again = await _generate(http, there, "k", **body)
        assert again.json().get("request_id", "") in (request_id, (await same[1]).json().get("request_id"))
        assert (await http.delete(f"{there}/v1/requests/{request_id}")).json()["state"] == "cancelled"


async def test_a_cancel_through_another_gateway_outlives_an_empty_store(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url) as fleet, redis_client(store.url) as client:
        here, there = fleet.gateways
        request_id = (await _generate(http, here, background=True, max_tokens=4000)).json()["request_id"]
        await _until(http, there, request_id, "running")
        worker = fleet.programs[0].pid
        os.kill(worker, signal.SIGSTOP)  # it does not hear of it
        assert (await http.delete(f"{there}/v1/requests/{request_id}")).json()["state"] == "running"
        client.flushall()
        os.kill(worker, signal.SIGCONT)
        await _until(http, here, request_id, "cancelled")
        await _until(http, there, request_id, "cancelled")


async def test_a_gateway_that_was_frozen_keeps_its_keys(store: Store, http: httpx2.AsyncClient) -> None:
    """Its lease holds still, so it gives its keys back to a store that was emptied meanwhile; others wait for that."""
    with _fleet(store.url) as fleet, redis_client(store.url) as client:
        here, there = fleet.gateways
        owner = fleet.programs[1]
        first = asyncio.create_task(_generate(http, here, "k", max_tokens=600))
        await asyncio.sleep(0.5)
        owner.signal(signal.SIGSTOP)
        client.flushall()
        second = asyncio.create_task(_generate(http, there, "k", max_tokens=600))
        await asyncio.sleep(2.2)
        owner.signal(signal.SIGCONT)
        answers = await asyncio.gather(first, second)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["request_id"] for answer in answers}) == 1


async def test_a_key_is_free_as_soon_as_its_request_expires(store: Store, http: httpx2.AsyncClient) -> None:
    with _fleet(store.url, "--retention-s", "1") as fleet:
        here, there = fleet.gateways
        first = await _generate(http, here, "k")
        assert first.status_code == 200
        first_id = first.json()["request_id"]
        await _until(http, here, first_id, "404 request_not_found")
        began = time.monotonic()
        both = await asyncio.gather(*(_generate(http, url, "k") for url in (here, there, here, there)))
        assert {answer.status_code for answer in both} == {200}
        assert len({answer.json()["request_id"] for answer in both} - {first_id}) == 1
        assert sorted(answer.headers.get("idempotent-replayed", "") for answer in both) == ["", "true", "true", "true"]
        assert time.monotonic() - began < 20.0 * PATIENCE
        await _until(http, here, both[0].json()["request_id"], "404 request_not_found")
        assert (await _generate(http, there, "k", max_tokens=3)).status_code == 200  # no conflict with what is gone


async def test_a_gateway_that_died_between_key_and_request_delays_no_other_client(
    store: Store, http: httpx2.AsyncClient
) -> None:
    with _fleet(store.url) as fleet, redis_client(store.url) as client:
        first = await _generate(http, fleet.gateways[0], "k", background=True)
        (name,) = client.keys("inference:once:*")
        client.delete(*client.keys("{inference:response:*"))  # as if it had been killed before it created the request
        _, body_hash, _ = client.get(name).decode().split(" ")
        client.set(name, f"gdead.01M83VPADE20A49QZ0BF9JCV43 {body_hash} {int(time.time() * 1000)}", px=60_000)
        first_id = first.json()["request_id"]
        both = await asyncio.gather(
            *(_generate(http, fleet.gateways[1], "k", background=True, max_tokens=20) for _ in range(2))
        )
        ids = {answer.json()["request_id"] for answer in both}
        assert len(ids - {first_id}) == 1
