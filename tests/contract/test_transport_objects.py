"""The request as an object, over every transport: followed, adopted, asked for twice, listed."""

from __future__ import annotations

import msgspec
import redis

from penstock.event import Done, Event
from penstock.job import Job
from penstock.transports.base import Outcome
from penstock.transports.quota import Share
from tests.support.stores import RedisStore, Store, new_job, new_worker, run_one, tokens


async def _heard(heard: list[Event], store: Store, num: int) -> None:
    async def enough() -> bool:
        return len(heard) >= num

    await store.until(enough, f"{num} events were heard")


async def test_another_gateway_follows_and_lets_go(store: Store) -> None:
    here, there = await store.transport(), await store.transport()
    mine: list[Event] = []
    yours: list[Event] = []
    await here.listen("g1", mine.append, lambda: None)
    await there.listen("g2", yours.append, lambda: None)
    await here.enlist(new_worker("w1"))
    job = new_job()
    await here.submit(job, "g1", 0)
    await there.follow(job.id)
    assert await there.adopt(job.id, "g2")
    claim = await run_one(here, "w1", job.id)
    await _heard(mine, store, 1)
    await _heard(yours, store, 1)
    assert mine == yours
    record = await here.read(job.id)
    assert record is not None
    assert record.owner == "g2"
    await there.unfollow(job.id)
    assert await there.cancel(job.id, "client", "g2") == "owned"  # g1 reads on
    await here.emit("w1", [tokens(claim, 0, "a ")])
    await _heard(mine, store, 2)
    assert await here.cancel(job.id, "client", "g1") == "marked"


async def test_only_the_last_readers_leaving_counts(store: Store) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await transport.adopt(job.id, "g2")
    assert await transport.cancel(job.id, "client", "g1") == "owned"
    assert await transport.cancel(job.id, "client", "g1") == "owned"  # safe to repeat
    assert await transport.cancel(job.id, "client", "g2") == "ended"
    assert not await transport.adopt("g1.unknown", "g2")


def _keyed(key: str = "key", body: str = "hash", caller: str = "me") -> Job:
    return new_job(caller=caller, once=f"{key} {body}")


async def test_a_key_names_one_request(store: Store) -> None:
    transport = await store.transport()
    first, second, other, yours = _keyed(), _keyed(), _keyed(body="other"), _keyed(caller="you")
    assert await transport.bind_key(first, 60.0) is None
    bound = await transport.bind_key(other, 60.0)
    assert bound is not None
    assert (bound.job_id, bound.body_hash) == (first.id, "hash")
    assert 0.0 <= bound.age_s < 30.0
    assert await transport.bind_key(first, 60.0) is None  # the reply had been lost
    assert await transport.bind_key(yours, 60.0) is None
    await transport.unbind_key(second)
    assert await transport.bind_key(second, 60.0) is not None
    await transport.unbind_key(first)
    assert await transport.bind_key(second, 60.0) is None


async def test_a_key_is_taken_from_a_request_that_is_named_and_by_one_only(store: Store) -> None:
    transport = await store.transport()
    first, second, third = _keyed(), _keyed(), _keyed()
    assert await transport.bind_key(first, 60.0) is None
    assert await transport.bind_key(second, 60.0, "g1.another") is not None
    assert await transport.bind_key(second, 60.0, first.id) is None
    bound = await transport.bind_key(third, 60.0, first.id)  # both had seen that the first one is forgotten
    assert bound is not None
    assert bound.job_id == second.id


async def test_a_key_is_free_again_when_its_time_is_over(store: Store) -> None:
    transport = await store.transport()
    assert await transport.bind_key(_keyed(), 0.05) is None

    async def is_free() -> bool:
        return await transport.bind_key(_keyed(), 0.05) is None

    await store.until(is_free, "the key to be free again")


async def test_a_key_expires_at_the_given_time(store: Store) -> None:
    transport = await store.transport()
    job = _keyed()
    assert await transport.bind_key(job, 60.0) is None
    assert await transport.bind_key(job, 0.05) is None  # its request has ended

    async def is_free() -> bool:
        return await transport.bind_key(_keyed(), 60.0) is None

    await store.until(is_free, "the key to be free again")


async def test_a_callers_requests_newest_first(store: Store) -> None:
    transport = await store.transport()
    jobs = [msgspec.structs.replace(new_job(), caller=caller) for caller in ("me", "you", "me", "me")]
    for job in jobs:
        await transport.submit(job, "g1", 0)

    assert await transport.requests_of("me", 10) == [jobs[3].id, jobs[2].id, jobs[0].id]
    assert await transport.requests_of("me", 2) == [jobs[3].id, jobs[2].id]
    assert await transport.requests_of("me", 0) == []
    assert await transport.requests_of("nobody", 10) == []


async def test_the_queue_in_order(store: Store) -> None:
    transport = await store.transport()
    jobs = [new_job() for _ in range(3)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    assert await transport.waiting() == [job.id for job in jobs]
    assert await transport.waiting(2) == [job.id for job in jobs[:2]]
    assert await transport.waiting(0) == []


async def test_a_job_keeps_its_own_retention(store: Store) -> None:
    transport = await store.transport()
    job = msgspec.structs.replace(new_job(), retention_s=7200.0)
    await transport.submit(job, "g1", 0)
    assert await transport.cancel(job.id, "deadline") == "ended"
    record = await transport.read(job.id)
    assert record is not None
    assert record.job.retention_s == 7200.0


async def test_a_job_keeps_its_own_retention_in_redis(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job = msgspec.structs.replace(new_job(), retention_s=7200.0)
    await transport.submit(job, "g1", 0)
    await transport.cancel(job.id, "deadline")
    left: object = client.pttl(f"{{inference:response:{job.id}}}:job")
    assert isinstance(left, int)
    assert 7_000_000 < left <= 7_200_000


async def test_a_deleted_job_is_gone_and_is_not_given_back(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored=1)
    job = new_job(caller="bob", retention_s=3600.0)
    await transport.submit(job, "g1", 0, share=share)
    assert not await transport.delete(job)  # it waits
    claim = await run_one(transport, "w1", job.id)
    assert not await transport.delete(job)  # it runs
    end = Done(job.id, claim.attempt, 1, finish_reason="stop")
    await transport.emit("w1", [tokens(claim, 0, "a"), end])
    assert await transport.delete(job)
    assert await transport.delete(job)
    transport.weigh(job, 128, 3600.0)  # of a gateway that has just learnt of its end
    assert await transport.read(job.id) is None
    assert await transport.read(job.id, job=job) is None
    assert await transport.read_summary([job.id]) == [None]
    assert await transport.states([job.id]) == {job.id: "done"}
    outcome = Outcome(job=job, attempt=claim.attempt, tokens=("a",), end=end, keep_s=60.0, created_ago_s=1.0)
    assert not await transport.restore_end(outcome, "g1")
    assert not await transport.restore(job, "g1", ["a"], claim.attempt)
    assert await transport.cancel(job.id, "client") == "done"
    assert await transport.read(job.id) is None

    async def is_free() -> bool:
        return await transport.requests_of("bob", 5) == []

    await store.until(is_free, "it counts no more")
    await transport.submit(new_job(caller="bob"), "g1", 0, share=share)


async def test_nothing_of_a_deleted_job_stays_for_ever(store: Store) -> None:
    transport = await store.transport()
    assert not await transport.delete(new_job())
    job = new_job(retention_s=0.05)
    await transport.submit(job, "g1", 0)
    await transport.cancel(job.id, "operator")
    await transport.delete(job)

    async def is_gone() -> bool:
        return await transport.states([job.id]) == {}

    await store.until(is_gone, "the deleted job expires")
