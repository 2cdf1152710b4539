"""Garbage in Redis: keys of every wrong type in every place of the protocol, ids and fields that are none.

Each costs at most itself: what is not a request's own key is removed and written again, a request that cannot be read
goes to the dead-letter list alone, and the others run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from penstock.errors import InternalError, StoreUnavailable
from penstock.event import Done, Failed
from penstock.job import Job
from penstock.transports import Transport
from penstock.transports.base import RateLimit
from penstock.transports.quota import Share
from penstock.transports.redis import keys
from tests.support.stores import RedisStore, new_job, new_worker, run_one, tokens
from tests.support.waiting import wait_until_async

PLANTS: dict[str, tuple[str, ...]] = {
    "string": ("SET", "garbage"),
    "list": ("RPUSH", "garbage"),
    "set": ("SADD", "garbage"),
    "zset": ("ZADD", "1", "garbage"),
    "hash": ("HSET", "garbage", "garbage"),
    "stream": ("XADD", "1-1", "garbage", "garbage"),
}
OWN = {"queue": "list", "workers": "zset", "gateways": "zset", "about": "hash", "clock": "hash", "dead": "list"}
PLACES = [*OWN, "worker:w1", "job", "log", "rate", "once", "requests", "stored", "bytes"]


def plant(client: redis.Redis, key: str, kind: str) -> None:
    name, *rest = PLANTS[kind]
    client.delete(key)
    client.execute_command(name, key, *rest)  # type: ignore[no-untyped-call]


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """As every loop does it: what is refused is tried again after a while."""
    result: list[Any] = []

    async def is_done() -> bool:
        try:
            result.append(await call())
        except StoreUnavailable:
            return False
        return True

    await wait_until_async(is_done, "it is not refused any more")
    return result[0]


async def answer(transport: Transport, job: Job, worker: str = "w1") -> None:
    """Run what the worker has, or gets, until this request has ended."""

    async def has_ended() -> bool:
        held = await again(lambda: transport.take(worker, 5))
        for claim in await again(lambda: transport.claim(worker, held)):
            end = Done(claim.job.id, claim.attempt, len(claim.tokens), tokens=("z",), finish_reason="stop")
            await again(lambda claim=claim, end=end: transport.emit(worker, [end]))  # type: ignore[misc]
        record = await transport.read(job.id)
        if record is not None and record.state == "queued" and not held:
            await again(lambda: transport.requeue_if_missing(job.id))  # as its gateway does
        return record is not None and record.state == "done"

    await wait_until_async(has_ended, "the request ends")


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("place", PLACES)
async def test_a_key_of_the_wrong_type_costs_at_most_its_own_request(
    real: RedisStore, client: redis.Redis, place: str, kind: str
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    hit, other = new_job(caller="me", once="key hash"), new_job(caller="me")
    await transport.submit(hit, "g1", 0)
    assert await transport.take("w1", 1) == [hit.id]
    await transport.submit(other, "g1", 0)
    pool, request = "{inference:queue}", f"{{inference:response:{hit.id}}}"
    of_caller = dict(zip(("requests", "stored", "bytes"), keys.caller("me"), strict=True))
    name = {"queue": "inference:queue", "rate": keys.rate("me"), **of_caller}.get(place)
    if place == "once":
        name = keys.once("me", "key")
    plant(client, name or (f"{request}:{place}" if place in ("job", "log") else f"{pool}:{place}"), kind)

    await again(lambda: transport.tick("g1"))
    assert not (await again(lambda: transport.renew(new_worker("w1"), [hit.id]))).is_lost
    assert (await again(lambda: transport.charge("me", RateLimit(60, 10)))).is_allowed
    await again(lambda: transport.bind_key(hit, 60.0))
    await again(lambda: transport.read_summary([hit.id, other.id]))
    assert isinstance(await again(lambda: transport.requests_of("me", 5)), list)
    await again(lambda: transport.waiting())
    await answer(transport, other)
    if place == "job" and kind != "hash":
        with pytest.raises(InternalError):
            await transport.read(hit.id)
        (dead,) = await transport.dead()
        assert (dead.id, dead.error) == (hit.id, "unreadable")
    elif place == "worker:w1":  # what it held is forgotten, so its gateway pushes it again
        await answer(transport, hit)
    transport.weigh(hit, 0, 10.0)
    await again(lambda: transport.submit(new_job(caller="me"), "g1", 0, share=Share(max_stored=10)))
    await again(transport.inspect)
    await again(transport.dead)
    await again(lambda: transport.tick("g1"))
    await again(lambda: transport.renew(new_worker("w1"), []))
    left: Any = client.lrange("{inference:queue}:worker:w1", 0, -1)
    assert set(left) <= {"garbage"}
    # What was planted in a request's place, or is of the right type, stays as it came.
    for key in client.scan_iter():
        if client.pttl(key) == -1 and (place == "dead" or key.startswith((request, "{inference:caller"))):
            client.delete(key)


async def test_a_waiting_worker_removes_a_key_of_a_wrong_type(real: RedisStore, client: redis.Redis) -> None:
    """Nothing else may have to do with these keys for a while."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    first, second = new_job(), new_job()
    await transport.submit(first, "g1", 0)
    plant(client, "{inference:queue}:worker:w1", "string")
    assert await again(lambda: transport.wait("w1", 0.01)) == first.id
    plant(client, "inference:queue", "string")
    assert await again(lambda: transport.wait("w1", 0.01)) is None
    await transport.submit(second, "g1", 0)
    assert await transport.wait("w1", 5.0) == second.id


SPOILT: dict[str, dict[str, Any]] = {
    "attempt that is not a number": {"attempt": "nan"},
    "attempt that is text": {"attempt": "many"},
    "attempt that is overlong": {"attempt": "9" * 40},
    "attempt that is missing": {"attempt": None},
    "deadline": {"deadline": "soon"},
    "created": {"created": "never"},
    "state": {"state": "asleep"},
    "state that is missing": {"state": None},
    "job that is missing": {"job": None},
    "job that is broken": {"job": '{"v":1,"job":'},
    "job of another request": {"job": '{"v":1,"job":{"id":"g1.else","model":"m","prompt":"x"}}'},
    "job that is not UTF-8": {"job": b"\xff\xfe"},
}
HARMLESS: dict[str, dict[str, Any]] = {
    "retention": {"retention": "abc"},
    "deaths": {"deaths": "few", "all_deaths": "none"},
    "claims": {"claims": "x"},
    "tokens": {"tokens": "1e99"},
}


@pytest.mark.parametrize("what", SPOILT)
async def test_a_request_that_cannot_be_read_is_set_aside_alone(
    real: RedisStore, client: redis.Redis, what: str
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    bad, good = new_job(), new_job()
    await transport.submit(bad, "g1", 0)
    await transport.submit(good, "g1", 0)
    _spoil(client, bad, SPOILT[what])
    held = await transport.take("w1", 2)
    claims = await transport.claim("w1", held)
    assert [claim.job.id for claim in claims] == [good.id]
    assert await transport.take("w1", 0) == [good.id]
    (dead,) = await transport.dead()
    assert (dead.id, dead.error, dead.deaths) == (bad.id, "unreadable", 0)
    assert dead.reason
    log: Any = client.xrevrange(f"{{inference:response:{bad.id}}}:log", count=1)
    frame = json.loads(log[0][1]["f"])
    assert (frame["kind"], frame["code"]) == ("failed", "internal_error")
    assert client.hget(f"{{inference:response:{bad.id}}}:job", "state") == "done"


@pytest.mark.parametrize("what", HARMLESS)
async def test_missing_optional_fields_of_a_job_are_not_an_error(
    real: RedisStore, client: redis.Redis, what: str
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    _spoil(client, job, HARMLESS[what])
    claim = await run_one(transport, "w1", job.id)
    assert await transport.emit("w1", [tokens(claim, 0, "a")]) == set()
    assert await transport.emit("w1", [Done(job.id, claim.attempt, 1, finish_reason="stop")]) == set()
    assert await transport.dead() == []


def _spoil(client: redis.Redis, job: Job, fields: dict[str, Any]) -> None:
    name = f"{{inference:response:{job.id}}}:job"
    for field, value in fields.items():
        if value is None:
            client.hdel(name, field)
        else:
            client.hset(name, field, value)


@pytest.mark.parametrize("value", ["0", "00", "-5", "9" * 16, "9" * 30, "1.5", ""])
async def test_a_retention_of_garbage_leaves_no_key_without_expiry(
    real: RedisStore, client: redis.Redis, value: str
) -> None:
    """However it ends: finished, cancelled, refused by a claim, or by a script that was stopped halfway."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    finished, cancelled, late, halfway = (new_job() for _ in range(4))
    for job in (cancelled, late, finished, halfway):
        await transport.submit(job, "g1", 0)
        _spoil(client, job, {"retention": value})
    _spoil(client, late, {"deadline": "1"})
    assert await transport.cancel(cancelled.id, "no_workers") == "ended"
    assert late.id in await transport.take("w1", 2)
    assert await transport.claim("w1", [late.id]) == []
    claim = await run_one(transport, "w1", finished.id)
    assert await transport.emit("w1", [Done(finished.id, claim.attempt, 0, finish_reason="stop")]) == set()
    client.xadd(f"{{inference:response:{halfway.id}}}:log", {"f": "x"}, id=f"5-{2**64 - 1}")
    assert not await transport.restore(halfway, "g1", ["a"], 1)
    for job in (finished, cancelled, late, halfway):
        for part in ("job", "log"):
            assert 59_000 < client.pttl(f"{{inference:response:{job.id}}}:{part}") <= 60_000


async def test_an_id_that_is_not_utf_8_is_set_aside_alone(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    client.rpush("inference:queue", b"\xff\xfe")
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await transport.waiting() == ["\\xff\\xfe", job.id]
    assert (await transport.overview()).oldest == "\\xff\\xfe"
    assert await transport.wait("w1", 1.0) is None
    assert await transport.take("w1", 1) == [job.id]
    (dead,) = await transport.dead()
    assert (dead.id, dead.error) == ("\\xff\\xfe", "unreadable")
    assert await transport.take("w1", 0) == [job.id]
    assert await transport.remove_dead("\\xff\\xfe")


async def test_names_of_workers_and_gateways_that_are_not_utf_8(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport(lease_s=0.25)
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    renew: Callable[[], Awaitable[Any]] = lambda: transport.renew(new_worker("w1"), [])  # noqa: E731 - one of two
    for look in (renew, lambda: transport.tick("g1")):
        job = new_job()
        await transport.submit(job, "g1", 0)
        client.zadd("{inference:queue}:workers", {b"\xff": 1})
        client.zadd("{inference:queue}:gateways", {b"\xff": 1})
        client.rename("inference:queue", b"{inference:queue}:worker:\xff")
        await transport.overview()

        async def is_back() -> bool:  # what a dead one of that name held
            await look()  # noqa: B023 - called in this round of the loop
            return await transport.waiting() == [job.id]  # noqa: B023

        await wait_until_async(is_back, "its list goes back to the queue")
        await transport.cancel(job.id, "client")


@pytest.mark.parametrize("value", ["many", "nan", "inf", "-inf", "1e999", "9" * 30, "-999999999", ""])
async def test_a_clock_of_garbage_is_repaired(real: RedisStore, client: redis.Redis, value: str) -> None:
    transport = await real.transport(lease_s=0.25)
    await transport.enlist(new_worker("w1"))
    await transport.tick("g2")
    clock: dict[Any, Any] = dict.fromkeys(("pulse", "amnesty", "pushed", "taken", "protocol", "away"), value)
    client.hset("{inference:queue}:clock", mapping=clock)
    job = new_job()
    await again(lambda: transport.submit(job, "g1", 0))
    pool = await again(lambda: transport.tick("g1"))
    assert pool.depth == 1
    assert 0 <= pool.num_taken < 10**15
    assert [worker.id for worker in pool.workers] in (["w1"], [])
    await again(lambda: transport.enlist(new_worker("w2")))
    await again(lambda: transport.renew(new_worker("w2"), []))
    await transport.overview()

    async def is_dead() -> bool:  # a suspect is not spared without end
        await transport.tick("g1")
        return not (await transport.tick("g1")).workers

    await wait_until_async(is_dead, "a worker whose lease has lapsed counts as dead")


@pytest.mark.parametrize("value", ["text", "inf", "nan", "1e300", "-5", ""])
async def test_a_rate_of_garbage_does_not_limit_without_end(real: RedisStore, client: redis.Redis, value: str) -> None:
    transport = await real.transport()
    client.set(keys.rate("k"), value, px=60_000)
    verdict = await transport.charge("k", RateLimit(60, 2))
    assert (verdict.is_allowed, verdict.remaining) == (True, 1)
    assert (await transport.charge("k", RateLimit(60, 2))).is_allowed
    assert not (await transport.charge("k", RateLimit(60, 2))).is_allowed


async def test_a_log_without_room_for_an_end_ends_its_request(real: RedisStore, client: redis.Redis) -> None:
    """Its last entry has the highest numbers there are."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job, other = new_job(), new_job()
    await transport.submit(job, "g1", 0)
    await transport.submit(other, "g1", 0)
    client.xadd(f"{{inference:response:{job.id}}}:log", {"f": "x"}, id=f"{2**64 - 1}-{2**64 - 2}")
    claims = await transport.claim("w1", await transport.take("w1", 2))
    assert [claim.job.id for claim in claims] == [other.id]
    record = await transport.read(job.id)
    assert record is not None
    assert isinstance(record.events[-1], Failed)
    await transport.submit(third := new_job(), "g1", 0)
    client.xadd(f"{{inference:response:{third.id}}}:log", {"f": "x"}, id=f"{2**64 - 1}-{2**64 - 2}")
    assert await transport.cancel(third.id, "client") == "ended"
