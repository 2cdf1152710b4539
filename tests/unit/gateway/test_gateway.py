"""A gateway's loops: what they survive, and what becomes of its process when one of them does not."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.api.app import create_app
from penstock.errors import StoreUnavailable
from penstock.event import Done, Failed
from penstock.fleet import Capabilities, Engines, Pool, WorkerInfo
from penstock.gateway import gateway as gateway_module
from penstock.gateway.gateway import Gateway
from penstock.job import Job
from penstock.metrics import Metrics
from penstock.processes import gateway as server
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from tests.support.memory import forget
from tests.support.serving import serving
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until, wait_until_async


class Fickle(MemoryTransport):
    """`error`: what every tick raises."""

    error: Exception | None = None
    num_ticks = 0

    async def tick(self, gateway_id: str) -> Pool:
        self.num_ticks += 1
        if self.error is not None:
            raise self.error
        return await super().tick(gateway_id)


@pytest.fixture
async def store() -> Fickle:
    store = Fickle()
    models = {"mock": Capabilities()}
    await store.enlist(WorkerInfo(id="w1", models=models, num_slots=8, num_free=8))
    return store


@pytest.fixture
async def gateway(store: Fickle) -> AsyncIterator[Gateway]:
    gateway = Gateway(Settings(), store, Metrics())
    gateway.start()
    await wait_until(lambda: gateway.why_not_ready() == [], "the gateway is ready")
    yield gateway
    await gateway.stop()


@pytest.mark.parametrize(
    "lost",
    [
        "penstock.gateway.gateway.Gateway._keep_ticking",
        "penstock.gateway.gateway.Gateway._watch_keys",
        "penstock.gateway.gateway.watch_lag",
        "penstock.gateway.relay.Relay.watch",
        "penstock.gateway.keepalive.Keepalive.run",
    ],
)
async def test_a_loop_that_dies_ends_its_process(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(lost, fail)
    monkeypatch.setattr(server, "make_transport", lambda settings, metrics: Fickle())
    (keys := tmp_path / "keys.json").write_text('{"keys": []}')
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        status = await server.serve(Settings(host="127.0.0.1", api_keys_file=keys), listener)
    assert status == server.EXIT_FAILED == 70


async def test_readers_at_a_failed_gateway_get_an_error(gateway: Gateway, store: Fickle) -> None:
    reader = await gateway.submit(Job(id=gateway.new_request_id(), model="mock", prompt="x"), "/v1/generate")
    store.error = RuntimeError("a bug")
    await wait_until(lambda: reader.stream.end is not None, "its stream ends")
    assert isinstance(reader.stream.end, Failed)
    assert reader.stream.end.code == "store_unavailable"
    assert "the store cannot be reached" in gateway.why_not_ready()


async def test_no_error_of_the_store_ends_the_ticker(gateway: Gateway, store: Fickle) -> None:
    deaths: list[BaseException] = []
    gateway.on_death = deaths.append
    store.error = StoreUnavailable("Redis refused to tick: ERR something that no list has")
    before = store.num_ticks
    await wait_until(lambda: store.num_ticks > before + 2, "it is tried again")
    store.error = None
    await wait_until(lambda: gateway.why_not_ready() == [], "it is ready again")
    assert deaths == []


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_tick_shows_that_the_store_has_lost_data(gateway: Gateway, store: Fickle, is_new: bool) -> None:
    """It does not know this gateway any more; or it was away, and may have come back as it was before."""
    job = Job(id=gateway.new_request_id(), model="mock", prompt="x", on_disconnect="continue", retention_s=300.0)
    gateway.relay.leave(await gateway.submit(job, "/v1/generate"), is_delivered=False)
    (claim,) = await store.claim("w1", await store.take("w1", 1))
    await store.emit("w1", [Done(job.id, claim.attempt, 0, finish_reason="stop")])
    forget(store, "jobs")
    if is_new:
        forget(store, "gateways")
    else:
        store.error = StoreUnavailable("it starts again")
        await wait_until(lambda: gateway._is_away, "a tick fails")
        store.error = None
    await wait_until(lambda: job.id in store.snapshot().jobs, "what has ended is given back")


async def test_without_a_lease_a_gateway_cancels_nothing(
    gateway: Gateway, store: Fickle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To workers it may be gone, and its clients with it: what they do with its work is for others to say."""
    job = Job(id=gateway.new_request_id(), model="mock", prompt="x", on_disconnect="resume")
    reader = await gateway.submit(job, "/v1/generate")
    gateway.relay.leave(reader, is_delivered=False)
    left_at = time.monotonic()
    store.error = StoreUnavailable("for now")
    monkeypatch.setattr(gateway_module, "LEASE_S", 0.0)
    gateway.relay.look(left_at)
    for seconds in range(int(gateway.settings.resume_window_s) + 2):
        gateway.relay.look(left_at + seconds)
    assert len(gateway.relay) == 1
    monkeypatch.setattr(gateway_module, "LEASE_S", 3600.0)
    gateway.relay.look(left_at + gateway.settings.resume_window_s + 2)
    assert len(gateway.relay) == 0


async def test_without_a_lease_a_gateway_takes_no_new_work(
    gateway: Gateway, store: Fickle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "LEASE_S", 0.0)
    transport = httpx2.ASGITransport(create_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        body = {"model": "mock", "prompt": "x", "background": True}
        assert (await http.post("/v1/generate", json=body)).status_code == 202
        store.error = StoreUnavailable("for now")
        before = store.num_ticks
        await wait_until(lambda: store.num_ticks > before, "a tick fails")
        answer = await http.post("/v1/generate", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["x-should-retry"] == "true"
        assert len(await store.waiting()) == 1
        store.error = None
        await wait_until(lambda: not gateway._is_away, "a tick goes well")
        assert (await http.post("/v1/generate", json=body)).status_code == 202


def _looks(gateway: Gateway, **engines: Engines) -> None:
    models = {"a": Capabilities(), "b": Capabilities()}
    worker = WorkerInfo(id="w1", models=models, num_slots=8, num_free=8, engines=engines)
    gateway.pool.look(Pool(depth=0, workers=(worker,)))


@pytest.mark.parametrize("has_keys", [False, True])
async def test_a_gateway_is_ready_while_any_model_can_run(has_keys: bool, tmp_path: Path) -> None:
    (keys := tmp_path / "keys.json").write_text('{"keys": []}')
    gateway = Gateway(Settings(api_keys_file=keys if has_keys else None), MemoryTransport(), Metrics())
    others = ["the store cannot be reached", "the subscription is down"]  # it is not started
    up, half, down = Engines(2, 2), Engines(1, 2), Engines(0, 2)
    for engines in ({}, {"a": up}, {"a": half, "b": half}):
        _looks(gateway, **engines)
        assert (gateway.why_not_ready(), gateway.why_degraded()) == (others, [])
    _looks(gateway, a=half, b=down)
    reason = "no engine is up for 1 of 2 models" if has_keys else "no engine is up for b"
    assert (gateway.why_not_ready(), gateway.why_degraded()) == (others, [reason])
    _looks(gateway, a=down, b=down)
    reason = "no engine is up for 2 of 2 models" if has_keys else "no engine is up for a, b"
    assert (gateway.why_not_ready(), gateway.why_degraded()) == ([*others, reason], [])


async def test_an_engine_that_is_down_shows_at_the_gateway_without_a_request() -> None:
    async with Upstream(health=503) as ill, Upstream() as well:
        models = [f"chat=openai:url={ill.url},engine=vllm,eject_s=0.1", f"talk=openai:url={well.url},engine=vllm"]
        async with serving(models=models) as port:
            base = f"http://127.0.0.1:{port}"
            async with httpx2.AsyncClient(base_url=base) as client:

                async def shows(status: str) -> bool:
                    return bool((await client.get("/readyz")).json()["status"] == status)

                await wait_until_async(lambda: shows("degraded"), "the engine is down")
                answer = await client.get("/readyz")
                assert (answer.status_code, answer.json()["reasons"]) == (200, ["no engine is up for chat"])
                metrics = (await client.get("/metrics")).text
                assert 'penstock_model_up{model="chat"} 0.0' in metrics
                assert 'penstock_model_up{model="talk"} 1.0' in metrics
                report = (await client.get("/v1/admin/doctor")).json()
                (engines,) = (one for one in report["findings"] if one["name"] == "engines")
                assert (engines["level"], engines["value"]) == ("error", "chat 0 of 1 up, talk 1 of 1 up")
                assert engines["advice"].startswith("chat cannot run.")
                (worker,) = (await client.get("/v1/admin/overview")).json()["workers"]
                assert worker["engines"] == {"chat": {"num_up": 0, "num": 1}, "talk": {"num_up": 1, "num": 1}}
                ill.health = 200
                await wait_until_async(lambda: shows("ready"), "the engine is up")
        assert ill.seen == []
