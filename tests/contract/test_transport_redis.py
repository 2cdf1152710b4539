"""What is the Redis transport's own: its rules when Redis forgets, is full, is away, or answers too late."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
import redis

from penstock.errors import ConfigError, InternalError, StoreUnavailable
from penstock.event import Done, Event, Failed, fold
from penstock.transports.base import RateLimit, Renewal
from penstock.transports.gcra import gcra
from penstock.transports.redis import RedisTransport
from tests.contract.stores import SHORT_LEASE_S, Ear, RedisStore, new_job, new_worker, run_one, tokens
from tests.servers import free_port, start_server
from tests.waiting import wait_until, wait_until_async


@pytest.fixture
def client(real: RedisStore) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(real.url, decode_responses=True) as client:
        yield client


async def test_every_key_is_one_that_the_protocol_names(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    await transport.charge("k1", RateLimit(60, 1))
    job, waiting = new_job(), new_job()
    await transport.submit(job, "g1", 0)
    await transport.submit(waiting, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(claim, 0, "a")])
    assert set(client.keys()) == {
        "inference:queue",
        *(f"{{inference:queue}}:{name}" for name in ("workers", "gateways", "about", "clock", "worker:w1")),
        *(f"{{inference:response:{job.id}}}:{name}" for name in ("job", "log")),
        f"{{inference:response:{waiting.id}}}:job",
        "inference:rate:{k1}",
    }
    log = client.xrange(f"{{inference:response:{job.id}}}:log")
    assert [entry for entry, _ in log] == [f"{claim.attempt}-0", f"{claim.attempt}-1"]
    assert json.loads(log[1][1]["f"]) == {
        **{"kind": "tokens", "id": job.id, "attempt": claim.attempt, "seq": 0, "tokens": ["a"]}
    }
    assert abs(client.pttl(f"{{inference:response:{job.id}}}:log") - (600 + 60) * 1000) < 5000
    await transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")])
    for name in ("job", "log"):
        assert 55_000 < client.pttl(f"{{inference:response:{job.id}}}:{name}") <= 60_000


async def test_pools_do_not_see_each_other(real: RedisStore) -> None:
    east, west = RedisTransport(real.url, pool="east"), RedisTransport(real.url, pool="west")
    job = new_job()
    await east.submit(job, "g1", 0)
    assert (await west.tick("g2")).depth == 0
    assert (await east.tick("g1")).depth == 1
    await asyncio.gather(east.close(), west.close())
    with pytest.raises(ValueError, match="pool"):
        RedisTransport(real.url, pool="a}b")


async def test_redis_forgets_everything(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(claim, 0, "a")])
    client.flushall()
    assert await transport.emit("w1", [tokens(claim, 1, "b")]) == {job.id}
    assert client.keys() == []  # nothing made the log again
    assert await transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")]) == {job.id}
    renewal = await transport.renew(new_worker("w1"), [job.id])
    assert (renewal.is_lost, renewal.gone) == (False, (job.id,))  # the amnesty: the worker is known again
    assert [info.id for info in (await transport.tick("g1")).workers] == ["w1"]
    assert await transport.restore(job, "g1", ["a"], claim.attempt)
    again = await run_one(transport, "w1", job.id)
    assert again.tokens == ("a",)
    assert again.attempt > claim.attempt


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


async def test_an_id_in_a_list_of_nobody_is_taken_over(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.enlist(new_worker("w2"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    old = await run_one(transport, "w1", job.id)
    client.delete("{inference:queue}:worker:w1")  # a rollback: w1 lives, but does not hold it any more
    await transport.ensure(job.id)
    claim = await run_one(transport, "w2", job.id)
    assert await transport.emit("w1", [tokens(old, 0, "x")]) == {job.id}
    assert await transport.emit("w2", [tokens(claim, 0, "a")]) == set()


async def test_a_full_redis_takes_no_new_work_and_finishes_the_old(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    ear = await Ear().listen(transport)
    await transport.enlist(new_worker("w1"))
    jobs = [new_job() for _ in range(2)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", jobs[0].id)
    client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            await transport.submit(new_job(), "g1", 0)
        await asyncio.wait_for(transport.wait("w1", 5.0), 2.0)  # refused, so the worker polls
        assert await transport.take("w1", 2) == [job.id for job in jobs]
        (second,) = await transport.claim("w1", [jobs[1].id])
        step: list[Event] = [tokens(claim, 0, "a", "b"), tokens(second, 0, "c")]
        assert await transport.emit("w1", step) == set()
        ends = [Done(c.job.id, c.attempt, n, tokens=("z",), finish_reason="stop") for c, n in ((claim, 2), (second, 1))]
        assert await transport.emit("w1", [*ends]) == set()
        assert not (await transport.renew(new_worker("w1"), [])).is_lost
        assert (await transport.tick("g1")).depth == 0
    finally:
        client.config_set("maxmemory", "0")
    await wait_until(lambda: len(ear.events) == 6, "six events")
    record = await transport.read(jobs[0].id)
    assert record is not None
    assert fold(record.events).tokens == ("a", "b", "z")


async def test_a_replica_is_no_place_to_write(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await transport.tick("g1")
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert (await transport.tick("g1")).depth == 0


async def test_every_connection_is_cut(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    ear = await Ear().listen(transport)
    hints: list[str] = []
    await transport.enlist(new_worker("w1"))
    await transport.watch("w1", lambda job_id, reason: hints.append(job_id))
    waiting = asyncio.create_task(transport.wait("w1", 5.0))
    await wait_until(lambda: "blmove" in {c["cmd"] for c in client.client_list()}, "the worker to wait")
    for kind in ("pubsub", "normal"):
        client.client_kill_filter(_type=kind, skipme=True)
    with pytest.raises(StoreUnavailable):
        await waiting
    await wait_until(lambda: ear.num_resets == 1 and transport.is_listening, "the subscription to stand again")
    job = new_job()
    assert await transport.submit(job, "g1", 1) == 1
    await transport.wait("w1", 1.0)
    assert await transport.take("w1", 0) == [job.id]
    await transport.claim("w1", [job.id])
    await transport.cancel(job.id, "client")
    await wait_until(lambda: hints and ear.events, "both ears to hear again")


async def test_a_caller_that_leaves_gets_nobody_elses_answer(real: RedisStore) -> None:
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
    listening = asyncio.create_task(Ear().listen(transport))
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
    ear = await Ear().listen(transport)
    server.stop()
    started = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await transport.submit(new_job(), "g1", 1)
    assert 1.9 < asyncio.get_running_loop().time() - started < 3.0
    with pytest.raises(StoreUnavailable):
        await transport.tick("g1")
    await wait_until(lambda: not transport.is_listening, "the subscription to be down")
    assert ear.num_resets == 0
    await transport.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await transport.tick("g1")


async def test_a_password(real: RedisStore) -> None:
    server = await asyncio.to_thread(start_server, real.name, password="not 4 you/")
    url = server.url.replace("not 4 you/", "not%204%20you%2F")
    transport, stranger = RedisTransport(url + "/2"), RedisTransport(f"redis://127.0.0.1:{server.port}")
    try:
        await transport.open()
        await transport.tick("g1")
        await Ear().listen(transport)
        with pytest.raises(StoreUnavailable, match="NOAUTH"):
            await stranger.open()
        with pytest.raises(StoreUnavailable, match="WRONGPASS|AUTH") as caught:
            await RedisTransport(url.replace("%2F", "x")).open()
        assert "not 4" not in str(caught.value)
    finally:
        await asyncio.gather(transport.close(), stranger.close())
        server.stop()


def test_a_url_that_is_none() -> None:
    for url in ("http://localhost", "localhost:6379", ""):
        with pytest.raises(ConfigError, match="Redis URL"):
            RedisTransport(url)


async def test_what_is_not_a_frame_is_counted_and_the_next_is_heard(real: RedisStore, client: redis.Redis) -> None:
    errors: list[str] = []

    class Metrics:
        def round_trip(self, verb: str, seconds: float) -> None: ...

        def store_error(self, kind: str) -> None:
            errors.append(kind)

    transport = RedisTransport(real.url, metrics=Metrics())
    ear = await Ear().listen(transport)
    good = b'{"kind":"started","id":"g1.1","attempt":1,"seq":0}'
    for frame in (b"not json", b'{"kind":"new","id":"g1.1","attempt":1,"seq":0}', good.replace(b"g1.1", b"g1.2"), good):
        client.publish("inference:response:g1.1", frame)
    await wait_until(lambda: ear.events, "the good one")
    assert errors == ["message"] * 3
    assert [event.job_id for event in ear.events] == ["g1.1"]
    await transport.close()


async def test_a_job_of_a_newer_version_is_answered(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    client.hset(f"{{inference:response:{job.id}}}:job", "job", '{"v":99,"job":{"id":"x","model":"m"}}')
    await transport.take("w1", 1)
    assert await transport.claim("w1", [job.id]) == []
    assert await transport.take("w1", 0) == []
    (_, frame), *_ = client.xrevrange(f"{{inference:response:{job.id}}}:log")
    assert json.loads(frame["f"])["code"] == "internal_error"


async def test_a_key_of_the_wrong_type_is_our_fault(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    client.set("inference:queue", "x", px=10_000)
    with pytest.raises(InternalError, match="WRONGTYPE"):
        await transport.tick("g1")


async def test_poison_is_on_the_dead_list_without_its_prompt(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job = new_job(prompt="a secret")
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    await run_one(transport, "w1", job.id)
    client.hset(f"{{inference:response:{job.id}}}:job", mapping={"worker": "w0", "deaths": 2, "all_deaths": 4})
    await transport.claim("w1", [job.id])
    (entry,) = client.lrange("{inference:queue}:dead", 0, -1)
    assert json.loads(entry) == {"id": job.id, "model": "m", "deaths": 5, "error": "request_poisoned"}
    record = await transport.read(job.id)
    assert record is not None
    assert isinstance(record.events[-1], Failed)


async def test_the_work_of_a_gateway_that_stays_away_is_not_wanted(real: RedisStore) -> None:
    doomed = RedisTransport(real.url, lease_s=SHORT_LEASE_S, resume_window_s=0.2)
    await doomed.enlist(new_worker("w1"))
    await doomed.tick("g1")
    cancel, keep = new_job(), new_job(on_disconnect="continue")
    for job in (cancel, keep):
        await doomed.submit(job, "g1", 0)
    await doomed.claim("w1", await doomed.take("w1", 2))

    async def is_unwanted() -> bool:
        renewal = await doomed.renew(new_worker("w1"), [cancel.id, keep.id])
        return renewal.cancelled == {cancel.id: "client"}

    await wait_until_async(is_unwanted, "the work of g1 to be unwanted")
    await doomed.adopt(cancel.id, "g2")
    assert (await doomed.renew(new_worker("w1"), [cancel.id])).cancelled == {}
    await doomed.close()


async def test_beside_renews_from_a_thread(real: RedisStore) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    beside = transport.beside()
    assert isinstance(beside, RedisTransport)
    renewals: list[Renewal] = []

    async def renew() -> None:
        await beside.open()
        renewals.append(await beside.renew(new_worker("w1"), []))
        await beside.close()

    thread = threading.Thread(target=lambda: asyncio.run(renew()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert [renewal.is_lost for renewal in renewals] == [False]


async def test_charge_says_what_the_reference_says(real: RedisStore) -> None:
    transport = await real.transport()
    limit, tat = RateLimit(rpm=7, burst=5), 0.0
    for _ in range(7):
        verdict = await transport.charge("k", limit)
        expected, tat = gcra(tat, 0.0, limit)  # as if no time passed in between
        assert (verdict.is_allowed, verdict.remaining) == (expected.is_allowed, expected.remaining)
        assert verdict.reset_s == pytest.approx(expected.reset_s, abs=1.0)
        assert verdict.retry_after_s == pytest.approx(expected.retry_after_s, abs=1.0)
