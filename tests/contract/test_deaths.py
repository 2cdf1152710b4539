"""What counts as the death of a worker: a lease that lapsed while others had a pulse, and nothing that Redis lost."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
import redis

from penstock.errors import StoreUnavailable
from penstock.job import Job
from penstock.transports import Transport
from penstock.transports.redis import keys
from tests.support.stores import RedisStore, new_job, new_worker, run_one


async def _running(transport: Transport) -> Job:
    """A job that w1 runs; w2 lives as well."""
    for worker in ("w1", "w2"):
        await transport.enlist(new_worker(worker))
    job = new_job()
    await transport.submit(job, "g1", 0)
    await run_one(transport, "w1", job.id)
    return job


async def test_losing_the_lists_of_workers_is_not_a_death(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job = await _running(transport)
    for worker, other in (("w1", "w2"), ("w2", "w1")) * 2:
        client.delete(f"{{inference:queue}}:worker:{worker}")
        await transport.renew(new_worker(other), [])  # however long this takes here: both live
        await transport.renew(new_worker(worker), [])
        await transport.requeue_if_missing(job.id)
        assert (await run_one(transport, other, job.id)).num_deaths == 0
    assert client.hget(keys.job(job.id), "all_deaths") is None


@pytest.mark.parametrize("lost", ["workers", "workers and clock"])
async def test_a_worker_that_redis_has_lost_is_not_a_death(real: RedisStore, client: redis.Redis, lost: str) -> None:
    """Redis loses its data again and again, and each time somebody finds the id first that does not run it."""
    transport = await real.transport()
    job = await _running(transport)
    for other in ("w2", "w1") * 2:
        client.delete(*(f"{{inference:queue}}:{name}" for name in ("workers", "worker:w1", "worker:w2")))
        if lost == "workers":  # the first pulse after it has begun the amnesty, and one worker is not known yet
            client.hset("{inference:queue}:clock", "pulse", 0)
            await transport.tick("g1")
        else:
            client.delete("{inference:queue}:clock")
        client.rpush(f"{{inference:queue}}:worker:{other}", job.id)  # by its blocking pop, which asks no lease
        assert [claim.num_deaths for claim in await transport.claim(other, [job.id])] == [0]
    assert client.hget(keys.job(job.id), "all_deaths") is None


async def test_a_gap_in_the_pulse_is_an_amnesty_before_it_is_written(real: RedisStore, client: redis.Redis) -> None:
    """No lease could be renewed for a while, as a right was taken away: the worker that asks first counts no death."""
    transport = await real.transport()
    job, waiting = await _running(transport), new_job()
    await transport.submit(waiting, "g1", 0)
    client.zadd("{inference:queue}:workers", {"w1": 1, "w2": 1})
    client.hset("{inference:queue}:clock", mapping={"pulse": 1, "amnesty": 0})
    assert await transport.reap("w1") == 0
    client.rpush("{inference:queue}:worker:w2", job.id)
    assert await transport.claim("w2", [job.id]) == []  # w1 lives, and holds it
    assert await transport.take("w2", 1) == [waiting.id]
    client.hset("{inference:queue}:clock", "pulse", int(time.time() * 1000) + 60_000)
    another = new_job()
    await transport.submit(another, "g1", 0)
    assert await transport.take("w2", 1) == [waiting.id]  # others have a pulse, and it has none
    assert await transport.reap("w1") == 1


async def test_a_renewal_that_fails_writes_no_pulse(real: RedisStore, client: redis.Redis) -> None:
    """A right that only workers need would take all leases away, while gateways keep the clock going."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    for name in ("time", "hmget", "zscore", "zadd", "hset", "pexpire", "lrange", "zrangebyscore"):
        client.zadd("{inference:queue}:workers", {"w1": 1})
        client.hset("{inference:queue}:clock", mapping={"pulse": 1, "amnesty": 0})
        client.execute_command("ACL", "SETUSER", "default", f"-{name}")  # type: ignore[no-untyped-call]
        with suppress(StoreUnavailable):
            await transport.renew(new_worker("w1"), [])
        with suppress(StoreUnavailable):
            await transport.tick("g1")
        client.execute_command("ACL", "SETUSER", "default", f"+{name}")  # type: ignore[no-untyped-call]
        lease: Any = client.zscore("{inference:queue}:workers", "w1")
        assert lease > 1 or client.hget("{inference:queue}:clock", "pulse") == "1", name


async def test_leases_that_another_program_overwrote_begin_an_amnesty(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    client.hset("{inference:queue}:clock", mapping={"pulse": int(time.time() * 1000) + 60_000, "amnesty": 0})
    client.delete("{inference:queue}:workers")
    client.set("{inference:queue}:workers", "garbage")
    with suppress(StoreUnavailable):
        await transport.renew(new_worker("w1"), [])
    assert not (await transport.renew(new_worker("w1"), [])).is_lost


async def test_a_worker_that_redis_lost_long_ago_is_dead(real: RedisStore, client: redis.Redis) -> None:
    """Its list was reaped, the id waited in the queue until the worker was no longer known: that is a death."""
    transport = await real.transport()
    job = await _running(transport)
    client.hset("{inference:queue}:clock", mapping={"pulse": int(time.time() * 1000) + 60_000, "amnesty": 0})
    client.zrem("{inference:queue}:workers", "w1")
    assert await transport.reap("w1") == 1
    assert (await run_one(transport, "w2", job.id)).num_deaths == 1


async def test_a_worker_that_has_left_is_dead_in_an_amnesty_too(real: RedisStore, client: redis.Redis) -> None:
    """As the parent of a worker says for its child that has crashed, moments after the whole pool was started."""
    transport = await real.transport()
    job = await _running(transport)
    client.hset("{inference:queue}:clock", "amnesty", int(time.time() * 1000) + 60_000)
    await transport.leave("w1")
    assert (await run_one(transport, "w2", job.id)).num_deaths == 1
