"""The Redis transport's connections: cut, refused, late, or not there yet; and answers that no task waits for."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import pytest
import redis

from penstock.errors import ConfigError, StoreUnavailable
from penstock.event import Done, Event
from penstock.transports.base import Renewal
from penstock.transports.redis import RedisTransport
from penstock.transports.redis.driver.subscriber import Subscriber
from penstock.transports.redis.worker_store import RedisWorkerStore
from tests.support.servers import free_port, redis_client, start_server
from tests.support.stores import Listener, RedisStore, new_job, new_worker, run_one, tokens
from tests.support.waiting import wait_until


async def test_scripts_that_the_server_has_lost_are_sent_again(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    for flush in (client.script_flush, lambda: None):
        flush()
        job = new_job()
        assert await transport.submit(job, "g1", 1) == 1
        flush()
        claim = await run_one(transport, "w1", job.id)
        flush()
        step: list[Event] = [
            tokens(claim, 0, "a"),
            tokens(claim, 1, "b"),
            Done(job.id, claim.attempt, 2, finish_reason="stop"),
        ]
        assert await transport.emit("w1", step) == set()
        record = await transport.read(job.id)
        assert record is not None
        assert list(record.events[1:]) == step
        assert await transport.take("w1", 0) == []


async def test_a_replica_is_not_written_to(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    client.slaveof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await transport.tick("g1")
    finally:
        client.slaveof()
    assert (await transport.tick("g1")).depth == 0


async def test_every_connection_is_cut(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    listener = await Listener().listen(transport)
    hints: list[str] = []
    await transport.enlist(new_worker("w1"))
    await transport.watch("w1", lambda job_id, reason: hints.append(job_id))
    waiting = asyncio.create_task(transport.wait("w1", 5.0))
    await wait_until(lambda: "blmove" in {c["cmd"] for c in client.client_list()}, "the worker to wait")
    for kind in ("pubsub", "normal"):
        client.client_kill_filter(_type=kind, skipme=True)
    with pytest.raises(StoreUnavailable):
        await waiting
    await wait_until(lambda: listener.num_resets == 1 and transport.is_listening, "the subscription to stand again")
    job = new_job()
    assert await transport.submit(job, "g1", 1) == 1
    await transport.wait("w1", 1.0)
    assert await transport.take("w1", 0) == [job.id]
    await transport.claim("w1", [job.id])
    await transport.cancel(job.id, "client")
    await wait_until(lambda: hints and listener.events, "both listeners to hear again")


async def test_a_caller_that_leaves_does_not_get_the_reply_of_another(real: RedisStore) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    leaving = [asyncio.create_task(transport.read(f"g1.{i}")) for i in range(50)]
    await asyncio.sleep(0)
    for task in leaving[::2]:
        task.cancel()
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await transport.take("w1", 0) == []
    await asyncio.wait(leaving)
    assert [task.cancelled() for task in leaving] == [i % 2 == 0 for i in range(50)]
    assert all(task.result() is None for task in leaving[1::2])

    waiting = asyncio.create_task(transport.wait("w1", 0.2))
    await asyncio.sleep(0)
    waiting.cancel()
    await transport.wait("w1", 0.2)
    assert await transport.take("w1", 0) == [job.id]  # nothing was lost with the reply


async def test_a_store_that_is_not_there_yet(real: RedisStore) -> None:
    port = free_port()
    transport = RedisTransport(f"redis://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match="cannot connect"):
        await transport.open()
    submitting = asyncio.create_task(transport.submit(new_job(), "g1", 1))
    listening = asyncio.create_task(Listener().listen(transport))
    await asyncio.sleep(0)
    server = await asyncio.to_thread(start_server, real.name, port=port)
    try:
        assert await submitting == 1
        await listening
        assert transport.is_listening
    finally:
        await transport.close()
        server.stop()


@pytest.mark.timeout(20)
async def test_a_store_that_stays_away(real: RedisStore) -> None:
    server = await asyncio.to_thread(start_server, real.name)
    transport = RedisTransport(server.url)
    await transport.open()
    listener = await Listener().listen(transport)
    server.stop()
    started = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await transport.submit(new_job(), "g1", 1)
    assert 1.9 < asyncio.get_running_loop().time() - started < 3.0
    with pytest.raises(StoreUnavailable):
        await transport.tick("g1")
    await wait_until(lambda: not transport.is_listening, "the subscription to be down")
    assert listener.num_resets == 0
    await transport.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await transport.tick("g1")


@pytest.mark.timeout(20)
async def test_a_store_that_stands_still(real: RedisStore) -> None:
    server = await asyncio.to_thread(start_server, real.name)
    transport = RedisTransport(server.url)
    await transport.open()
    await transport.submit(new_job(), "g1", 0)
    try:
        server.process.send_signal(signal.SIGSTOP)
        left = asyncio.create_task(transport.submit(new_job(), "g1", 0))
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(0)
        left.cancel()  # a caller that leaves is cancelled, and hears of no time that has run out
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(StoreUnavailable, match="away for 2 s"):
            await transport.submit(new_job(), "g1", 0)
        assert 1.9 < asyncio.get_running_loop().time() - started < 3.0
        server.process.send_signal(signal.SIGCONT)
        assert await transport.submit(new_job(), "g1", 0) > 1
    finally:
        await transport.close()
        server.stop()


async def test_a_password(real: RedisStore) -> None:
    server = await asyncio.to_thread(start_server, real.name, password="not 4 you/")
    url = server.url.replace("not 4 you/", "not%204%20you%2F")
    transport, stranger = RedisTransport(url + "/2"), RedisTransport(f"redis://127.0.0.1:{server.port}")
    try:
        await transport.open()
        await transport.tick("g1")
        await Listener().listen(transport)
        with pytest.raises(StoreUnavailable, match="NOAUTH"):
            await stranger.open()
        with pytest.raises(StoreUnavailable, match=r"WRONGPASS|AUTH") as caught:
            await RedisTransport(url.replace("%2F", "x")).open()
        assert "not 4" not in str(caught.value)
    finally:
        await asyncio.gather(transport.close(), stranger.close())
        server.stop()


def test_a_url_that_is_none() -> None:
    for url in ("http://localhost", "localhost:6379", ""):
        with pytest.raises(ConfigError, match="Redis URL"):
            RedisTransport(url)


class Noted:
    """What a transport counts as errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def round_trip(self, verb: str, seconds: float) -> None: ...

    def store_error(self, kind: str) -> None:
        self.errors.append(kind)


async def test_each_job_whose_write_is_refused_is_counted(real: RedisStore) -> None:
    noted = Noted()
    transport = RedisTransport(real.url, metrics=noted)
    try:
        await transport.enlist(new_worker("w1"))
        jobs = [new_job(), new_job()]
        for job in jobs:
            await transport.submit(job, "g1", 0)
        claims = [await run_one(transport, "w1", job.id) for job in jobs]
        assert not await transport.emit("w1", [tokens(claim, 0, "a") for claim in claims])
        assert noted.errors == []
        ended = [Done(claim.job.id, claim.attempt, 1, finish_reason="stop") for claim in claims]
        assert not await transport.emit("w1", ended)
        assert await transport.emit("w1", [tokens(claim, 1, "b") for claim in claims]) == {job.id for job in jobs}
        assert noted.errors.count("emit_refused") == 2
    finally:
        await transport.close()


async def test_an_invalid_frame_is_counted_and_the_next_is_received(real: RedisStore, client: redis.Redis) -> None:
    noted = Noted()
    transport = RedisTransport(real.url, metrics=noted)
    listener = await Listener().listen(transport)
    good = b'{"kind":"started","id":"g1.1","attempt":1,"seq":0}'
    for frame in (b"not json", b'{"kind":"tokens","id":"g1.1","attempt":1}', good.replace(b"g1.1", b"g1.2"), good):
        client.publish("inference:response:g1.1", frame)
    await wait_until(lambda: listener.events, "the good one")
    assert noted.errors == ["message"] * 3
    assert [event.job_id for event in listener.events] == ["g1.1"]
    await transport.close()


async def test_a_reader_that_dies_of_a_bug_begins_again(
    real: RedisStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await real.transport()
    assert isinstance(transport, RedisTransport)
    listener = await Listener().listen(transport)
    listen, num_bugs = Subscriber._listen, 0

    async def fail_once(self: Subscriber, link: Any) -> None:
        nonlocal num_bugs
        num_bugs += 1
        if num_bugs == 1:
            raise RuntimeError("a bug")
        await listen(self, link)

    monkeypatch.setattr(Subscriber, "_listen", fail_once)
    with redis_client(real.url) as client:
        client.client_kill_filter(_type="pubsub")
    await wait_until(lambda: num_bugs > 1 and transport.is_listening, "it listens again")
    assert listener.num_resets >= 1
    assert "it begins again" in caplog.text
    await transport.submit(job := new_job(), "g1", 0)
    await transport.cancel(job.id, "client")
    await wait_until(lambda: listener.events, "it hears")


async def test_a_gateway_that_does_not_listen_yet_cannot_follow(real: RedisStore) -> None:
    transport = await real.transport()
    with pytest.raises(StoreUnavailable, match="not listen yet"):
        await transport.follow("g9.1")
    await Listener().listen(transport)
    await transport.follow("g9.1")


async def test_a_clone_renews_from_a_thread(real: RedisStore) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    clone = transport.clone_for_thread()
    assert isinstance(clone, RedisWorkerStore)
    renewals: list[Renewal] = []

    async def renew() -> None:
        await clone.open()
        renewals.append(await clone.renew(new_worker("w1"), []))
        await clone.close()

    thread = threading.Thread(target=lambda: asyncio.run(renew()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [renewal.is_lost for renewal in renewals] == [False]
