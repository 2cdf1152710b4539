"""Turns of callers: a few at once, the others one after another, each in the end; nothing is left of those who went."""

from __future__ import annotations

import asyncio
import hashlib

import httpx2
import pytest
from msgspec.structs import replace

from penstock.api.app import create_app
from penstock.errors import RateLimited
from penstock.event import Done
from penstock.fleet import Capabilities, WorkerInfo
from penstock.gateway.gateway import Gateway
from penstock.gateway.turns import AT_ONCE, Turns
from penstock.job import Job, new_ulid
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.base import Record
from penstock.transports.memory import MemoryTransport
from tests.support.waiting import wait_until


async def test_thousands_of_one_caller_get_their_turn_a_few_at_once() -> None:
    turns, now, most, done = Turns(), 0, 0, 0

    async def read() -> None:
        nonlocal now, most, done
        async with turns.of("a"):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            done += 1

    await asyncio.gather(*(read() for _ in range(3000)))
    assert (most, done, len(turns)) == (AT_ONCE, 3000, 0)


async def test_one_caller_does_not_wait_for_another() -> None:
    turns = Turns()
    async with asyncio.TaskGroup() as group:
        release = asyncio.Event()

        async def hold() -> None:
            async with turns.of("a"):
                await release.wait()

        for _ in range(AT_ONCE + 5):
            group.create_task(hold())
        await asyncio.sleep(0)
        async with turns.of("b"):
            assert len(turns) == 2
        release.set()
    assert len(turns) == 0


async def test_a_turn_that_takes_too_long_is_429_and_an_abandoned_one_is_dropped() -> None:
    turns, release = Turns(wait_s=0.05), asyncio.Event()

    async def hold() -> None:
        async with turns.of("a"):
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match="reads of a caller"):
        async with turns.of("a"):
            raise AssertionError("there was no free turn")
    waiting = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    await asyncio.gather(*holding, waiting, return_exceptions=True)
    assert len(turns) == 0


class Slow(MemoryTransport):
    """Reads stand still until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()
        self.num = self.most = self.total = 0

    async def _stand(self) -> None:
        self.num, self.total = self.num + 1, self.total + 1
        self.most = max(self.most, self.num)
        await self.may.wait()
        self.num -= 1

    async def read(self, job_id: str, after: tuple[int, int] | None = None, *, job: Job | None = None) -> Record | None:
        await self._stand()
        return await super().read(job_id, after, job=job)

    async def requests_of(self, caller: str, limit: int) -> list[str]:
        await self._stand()
        return await super().requests_of(caller, limit)


@pytest.mark.parametrize("method", ["list", "GET", "DELETE", "POST"])
async def test_whatever_is_read_for_a_caller_takes_its_turn(method: str) -> None:
    """`POST`: with a key that names a request of another gateway, which is read to see whether it is the same."""
    store = Slow()
    gateway = Gateway(Settings(), store, Metrics())
    gateway.start()
    job = Job(id=f"g1.{new_ulid()}", model="m", prompt="x", retention_s=60.0)
    job = replace(job, once=f"{hashlib.sha256(b'k').hexdigest()[:32]} another")
    await store.enlist(WorkerInfo(id="w", models={"m": Capabilities()}, num_slots=8, num_free=8))
    await store.submit(job, "g1", 0)
    await store.bind_key(job, 60.0)
    assert await store.take("w", 1) == [job.id]
    (claim,) = await store.claim("w", [job.id])
    assert not await store.emit("w", [Done(job.id, claim.attempt, 0, finish_reason="stop")])
    await wait_until(lambda: not gateway.why_not_ready(), "the gateway is ready")
    num = 3 * AT_ONCE
    app = httpx2.ASGITransport(create_app(gateway))
    async with httpx2.AsyncClient(transport=app, base_url="http://gateway") as http, asyncio.TaskGroup() as group:
        if method == "POST":
            headers = {"idempotency-key": "k"}
            asked = [
                group.create_task(http.post("/v1/generate", json={"prompt": "y"}, headers=headers)) for _ in range(num)
            ]
        else:
            path = "/v1/requests" if method == "list" else f"/v1/requests/{job.id}"
            asked = [group.create_task(http.request("GET" if method == "list" else method, path)) for _ in range(num)]
        # All are inside: in a turn, or waiting for one.
        await wait_until(lambda: sum(line.num for line in gateway.turns._lines.values()) == num, "all are there")
        assert store.num == AT_ONCE
        store.may.set()
    assert store.most == AT_ONCE
    assert store.total == (2 * num if method == "list" else num), "what has ended is read once; one is in each list"
    assert {one.result().status_code for one in asked} == {409 if method == "POST" else 200}
    await gateway.stop()
