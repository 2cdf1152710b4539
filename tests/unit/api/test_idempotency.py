"""One key, one request: for every client, at every gateway, however long the first submission takes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.api import idempotency
from penstock.api.idempotency import submit_once
from penstock.errors import IdempotencyConflict, QueueFull, StoreUnavailable
from penstock.event import Done
from penstock.fleet import Capabilities, WorkerInfo
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader, keeper
from penstock.http.edge import Call
from penstock.job import Job
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from penstock.transports.memory_state import BoundKey
from tests.support.memory import changing, forget
from tests.support.waiting import wait_until

NAME = "me", hashlib.sha256(b"k").hexdigest()[:32]


class Rig:
    def __init__(self) -> None:
        self.store = MemoryTransport()
        self.here, self.there = (Gateway(Settings(), self.store, Metrics()) for _ in range(2))

    async def post(self, gateway: Gateway, body_hash: str = "hash", **fields: Any) -> Reader:
        job = Job(id=gateway.new_request_id(), model="mock", prompt="x", caller="me", **fields)
        return await submit_once(gateway, Call(job.id), job, "/v1/generate", "k", body_hash, "key:me")

    async def begun(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[asyncio.Task[Reader], asyncio.Event]:
        """A submission that has its key, and reaches the store only when the event is set."""
        submit, may_go = self.store.submit, asyncio.Event()

        async def late(*args: Any, **kwargs: Any) -> int:
            await may_go.wait()
            return await submit(*args, **kwargs)

        monkeypatch.setattr(self.store, "submit", late)
        first = asyncio.create_task(self.post(gateway))
        await wait_until(lambda: NAME in self.store.snapshot().bound, "the key is bound")
        monkeypatch.setattr(self.store, "submit", submit)
        return first, may_go

    def bound_to(self) -> str:
        return self.store.snapshot().bound[NAME].job_id


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.store.enlist(WorkerInfo(id="w1", models={"mock": Capabilities()}, num_slots=8, num_free=8))
    for gateway in (rig.here, rig.there):
        gateway.start()
    for gateway in (rig.here, rig.there):
        await wait_until(lambda gateway=gateway: not gateway.why_not_ready(), "it is ready")  # type: ignore[misc]
    yield rig
    for gateway in (rig.here, rig.there):
        await gateway.stop()


async def test_a_second_post_waits_while_the_first_is_submitted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()
    look_up = rig.there.relay.look_up

    async def seen(*args: Any) -> Any:
        record = await look_up(*args)
        asked.set()
        return record

    first, may_go = await rig.begun(rig.here, monkeypatch)
    monkeypatch.setattr(rig.there.relay, "look_up", seen)
    second = asyncio.create_task(rig.post(rig.there))
    await asked.wait()
    may_go.set()
    ids = {(await reader).stream.job.id for reader in (first, second)}
    assert ids == {rig.bound_to()} == set(rig.store.snapshot().queue)


async def test_a_late_post_joins_the_request_that_got_its_key(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "PENDING_S", 0.0)
    first, may_go = await rig.begun(rig.here, monkeypatch)
    second = await rig.post(rig.there)
    may_go.set()
    assert (await first).stream.job.id == second.stream.job.id == rig.bound_to()
    await rig.here.relay.drain()
    assert rig.store.snapshot().queue == [rig.bound_to()], "its own is not left to run beside it"


async def test_a_submission_that_is_refused_frees_its_key(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: Any, **kwargs: Any) -> int:
        raise QueueFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "submit", refuse)
        with pytest.raises(QueueFull):
            await rig.post(rig.here)
    assert NAME not in rig.store.snapshot().bound
    assert (await rig.post(rig.there, "another")).stream.job.id == rig.bound_to()


@pytest.mark.parametrize("body_hash", ["hash", "another"])
async def test_a_key_whose_request_has_expired_goes_to_one_of_the_clients_that_ask(rig: Rig, body_hash: str) -> None:
    with changing(rig.store) as state:
        state.bound[NAME] = BoundKey("gdead.01M83VPADE20A49QZ0BF9JCV43", "hash", 0.0, time.time() + 600.0)
    readers = await asyncio.gather(*(rig.post(gateway, body_hash) for gateway in (rig.here, rig.there) * 2))
    assert {reader.stream.job.id for reader in readers} == {rig.bound_to()} == set(rig.store.snapshot().queue)


async def test_the_gateway_that_holds_a_request_knows_its_key(rig: Rig) -> None:
    first = await rig.post(rig.here)
    forget(rig.store, "bound")
    assert (await rig.post(rig.here)).stream is first.stream
    with pytest.raises(IdempotencyConflict):
        await rig.post(rig.here, "another")


async def test_a_store_that_knows_this_gateway_no_more_leaves_no_client_waiting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has stopped ticking, or may not tick: what the store has lost is then never known."""

    async def never(*args: Any) -> bool:
        return False

    monkeypatch.setattr(rig.store, "knows", never)
    monkeypatch.setattr(idempotency, "MAX_WAIT_S", 0.2)
    with pytest.raises(StoreUnavailable, match="not known to it"):
        await rig.post(rig.here)
    assert NAME not in rig.store.snapshot().bound
    assert not rig.store.snapshot().queue


async def test_a_free_key_is_given_to_none_while_the_store_may_have_lost_its_last_moments(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway of the key's request gives both back when its own subscription breaks, which is about now."""
    first = await rig.post(rig.here)
    forget(rig.store, "bound")
    monkeypatch.setattr(keeper, "SETTLED_S", 0.2)
    rig.there.relay.invalidate_all()
    second = asyncio.create_task(rig.post(rig.there))
    await wait_until(lambda: rig.there.relay.keeper._doubted_at > 0.0, "it looks whether anything is lost")
    rig.here.relay.invalidate_all()
    await rig.here.relay.keeper.bind(first.stream.job, 60.0)
    assert (await second).stream.job.id == first.stream.job.id


async def test_a_key_lives_as_long_as_the_answer(rig: Rig) -> None:
    await rig.post(rig.here, timeout_s=3600.0, retention_s=100.0)
    (claim,) = await rig.store.claim("w1", await rig.store.take("w1", 1))
    await rig.store.emit("w1", [Done(claim.job.id, claim.attempt, 0, finish_reason="stop")])
    await rig.here.relay.drain()
    assert 100.0 < rig.store.snapshot().bound[NAME].expires_at - rig.store._now() < 200.0
