"""What is the Redis transport's own: its rules when Redis forgets, is full, is away, or answers too late."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import redis

from penstock.errors import StoreUnavailable
from penstock.event import Done, Event, Failed, fold
from penstock.transports.base import LATE_SLACK_S, Outcome, RateLimit
from penstock.transports.gcra import gcra
from penstock.transports.redis import RedisTransport, keys
from tests.support.stores import SHORT_LEASE_S, Listener, RedisStore, new_job, new_worker, run_one, tokens
from tests.support.waiting import wait_until, wait_until_async


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
        *(f"{{inference:caller:}}:{name}" for name in ("requests", "stored", "bytes")),
    }
    log: Any = client.xrange(f"{{inference:response:{job.id}}}:log")
    assert [entry for entry, _ in log] == [f"{claim.attempt}-0", f"{claim.attempt}-1"]
    assert json.loads(log[1][1]["f"]) == {
        "kind": "tokens",
        "id": job.id,
        "attempt": claim.attempt,
        "seq": 0,
        "tokens": ["a"],
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


async def test_an_id_that_no_list_has_is_taken_over(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    await transport.enlist(new_worker("w2"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    old = await run_one(transport, "w1", job.id)
    client.delete("{inference:queue}:worker:w1")  # a rollback: w1 lives, but does not hold it any more
    await transport.requeue_if_missing(job.id)
    claim = await run_one(transport, "w2", job.id)
    assert await transport.emit("w1", [tokens(old, 0, "x")]) == {job.id}
    assert await transport.emit("w2", [tokens(claim, 0, "a")]) == set()


def _acl(client: redis.Redis, *rules: str) -> None:
    client.execute_command("ACL", "SETUSER", "default", *rules)  # type: ignore[no-untyped-call]


async def test_restore_pushes_what_it_could_not_push_before(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    short = await run_one(transport, "w1", job.id)
    _acl(client, "-lpush")  # restore and enqueue are two round trips; the second is refused here
    try:
        with pytest.raises(StoreUnavailable, match="enqueue"):
            await transport.restore(job, "g1", ["a"], short.attempt)
    finally:
        _acl(client, "+lpush")
    assert await transport.restore(job, "g1", ["a"], short.attempt)
    assert await transport.waiting() == [job.id]


async def test_a_claim_that_is_refused_costs_the_others_nothing(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    bad, good = new_job(), new_job()
    for job in (bad, good):
        await transport.submit(job, "g1", 0)
    held = await transport.take("w1", 2)
    assert held == [bad.id, good.id]
    _acl(client, "resetkeys", "~inference:*", "~{inference:queue}*", f"~{{inference:response:{good.id}}}*")
    try:
        assert [claim.job.id for claim in await transport.claim("w1", held)] == [good.id]
        with pytest.raises(StoreUnavailable, match="claim"):
            await transport.claim("w1", [bad.id])
    finally:
        _acl(client, "~*")
    assert set(await transport.take("w1", 0)) == {bad.id, good.id}
    assert [claim.job.id for claim in await transport.claim("w1", [bad.id])] == [bad.id]


async def test_a_restored_job_is_listed_again(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    first, second = new_job(caller="me"), new_job(caller="me")
    await transport.submit(first, "g1", 0)
    await transport.submit(second, "g1", 0)
    client.flushall()
    assert await transport.restore(first, "g1", ["a"], 7)
    await transport.submit(second, "g1", 0, floor=7, front=True)
    await transport.submit(second, "g1", 0, floor=7, front=True)
    assert await transport.requests_of("me", 2) == [second.id, first.id]
    left: Any = client.pttl("{inference:caller:me}:requests")
    assert 660_000 < left <= 660_000 + 600_000  # a little longer, so that not each request has to set it


async def test_a_callers_list_is_bounded_and_outlives_its_longest_request(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport()
    await transport.submit(new_job(caller="me", timeout_s=5000.0), "g1", 0)
    client.lpush("{inference:caller:me}:requests", *(f"g0.{number}" for number in range(1500)))
    last = new_job(caller="me", timeout_s=5.0)
    await transport.submit(last, "g1", 0)
    listed = await transport.requests_of("me", 5000)
    assert (len(listed), listed[0]) == (1000, last.id)
    left: Any = client.pttl("{inference:caller:me}:requests")
    assert left > 5_000_000


async def test_an_idempotency_key_has_its_documented_form_in_redis(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job = new_job(caller="me", once="0123abcd hash")
    assert await transport.bind_key(job, 60.0) is None
    names: Any = client.keys("inference:once:*")
    (name,) = names
    assert name == "inference:once:me:0123abcd"
    value: Any = client.get(name)
    assert value.startswith(f"{job.id} hash ")
    left: Any = client.pttl(name)
    assert 0 < left <= 60_000


async def test_a_full_redis_takes_no_new_work_and_finishes_the_old(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    listener = await Listener().listen(transport)
    await transport.enlist(new_worker("w1"))
    jobs = [new_job() for _ in range(2)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", jobs[0].id)
    client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            await transport.submit(new_job(), "g1", 0)
        await asyncio.wait_for(transport.wait("w1", 5.0), 4.0)  # earlier than the 5 s of the pop: refused, so it polls
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
    await wait_until(lambda: sum(isinstance(event, Done) for event in listener.events) == 2, "both ends")
    heard = fold(event for event in listener.events if event.job_id == jobs[0].id)  # what was refused is heard twice
    assert heard.tokens == ("a", "b", "z")
    record = await transport.read(jobs[0].id)
    assert record is not None
    assert fold(record.events).tokens == ("a", "b", "z")


async def test_poison_is_on_the_dead_list_without_its_prompt(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job = new_job(prompt="a secret")
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    await run_one(transport, "w1", job.id)
    client.hset(f"{{inference:response:{job.id}}}:job", mapping={"worker": "w0", "deaths": 2, "all_deaths": 4})
    far = int(time.time() * 1000) + 60_000  # others have a pulse, so w0 is dead and not only forgotten
    client.hset("{inference:queue}:clock", mapping={"pulse": far, "amnesty": 0})
    await transport.claim("w1", [job.id])
    (entry,) = client.lrange("{inference:queue}:dead", 0, -1)
    assert json.loads(entry) == {"id": job.id, "model": "m", "deaths": 5, "error": "request_poisoned", "reason": ""}
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


async def test_charge_agrees_with_the_reference(real: RedisStore) -> None:
    transport = await real.transport()
    limit, tat = RateLimit(rpm=7, burst=5), 0.0
    for _ in range(7):
        verdict = await transport.charge("k", limit)
        expected, tat = gcra(tat, 0.0, limit)  # as if no time passed in between
        assert (verdict.is_allowed, verdict.remaining) == (expected.is_allowed, expected.remaining)
        assert verdict.reset_s == pytest.approx(expected.reset_s, abs=1.0)
        assert verdict.retry_after_s == pytest.approx(expected.retry_after_s, abs=1.0)


@pytest.mark.parametrize("skew_s", [-86_400.0, 86_400.0])
async def test_the_clocks_of_processes_do_not_matter(
    real: RedisStore, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    """This process' wall clock is a day off; leases, deadlines, attempts and limits are those of Redis' own."""
    true_time = time.time()
    monkeypatch.setattr(time, "time", lambda: true_time + skew_s)
    monkeypatch.setattr(time, "time_ns", lambda: int((true_time + skew_s) * 1e9))
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    assert 599 < claim.deadline_at - time.monotonic() <= 600
    assert abs(claim.attempt / 1000 - true_time) < 60
    assert await transport.emit("w1", [tokens(claim, 0, "a")]) == set()
    assert not (await transport.renew(new_worker("w1"), [job.id])).is_lost
    assert [worker.id for worker in (await transport.tick("g1")).workers] == ["w1"]
    record = await transport.read(job.id)
    assert record is not None
    assert abs(record.created_at - true_time) < 60
    assert 0 <= record.now - record.created_at < 60


async def test_a_gateway_ends_a_request_that_runs_long_past_its_deadline(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    assert await transport.cancel(job.id, "deadline", "g1") == "marked"
    client.hincrby(keys.job(job.id), "deadline", -round((job.timeout_s + LATE_SLACK_S) * 1000))
    assert await transport.cancel(job.id, "deadline", "g1") == "ended"
    assert await transport.emit("w1", [tokens(claim, 0, "late")]) == {job.id}
    record = await transport.read(job.id)
    assert record is not None
    end = record.events[-1]
    assert isinstance(end, Failed)
    assert end.code == "deadline_exceeded"


async def test_half_an_end_is_completed(real: RedisStore, client: redis.Redis) -> None:
    """A script that was stopped between the terminal frame and the state."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    for verb in ("cancel", "restore", "restore_end"):
        job = new_job()
        await transport.submit(job, "g1", 0)
        claim = await run_one(transport, "w1", job.id)
        await transport.emit("w1", [tokens(claim, 0, "a"), Done(job.id, claim.attempt, 1, finish_reason="stop")])
        client.hset(keys.job(job.id), "state", "queued")
        before = await transport.read(job.id)
        assert before is not None
        if verb == "cancel":
            assert await transport.cancel(job.id, "client") == "done"
        elif verb == "restore":
            assert not await transport.restore(job, "g1", ["a"], claim.attempt)
        else:
            end = Done(job.id, 1, 1, finish_reason="stop")
            outcome = Outcome(job=job, attempt=1, tokens=["a"], end=end, keep_s=60.0, created_ago_s=1.0)
            assert await transport.restore_end(outcome, "g1")
        after = await transport.read(job.id)
        assert after is not None
        assert (after.state, after.events) == ("done", before.events)
