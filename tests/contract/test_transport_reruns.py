"""The contract of every transport: an answer that cannot be continued begins again, if no client has read it."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from penstock.event import Done, Event, Failed, Started, fold
from penstock.job import Claim, Job
from penstock.transports import Transport
from penstock.transports.base import MAX_DEATHS_IN_A_ROW
from penstock.transports.redis import keys
from tests.support.stores import Listener, RedisStore, new_job, new_worker, run_one, tokens
from tests.support.waiting import wait_until


async def begun(transport: Transport, *, stream: bool = False) -> tuple[Job, Claim]:
    """A job that w1 has begun to answer with "a" and "b", and w2 lives as well."""
    for worker in ("w1", "w2"):
        await transport.enlist(new_worker(worker))
    job = new_job(stream=stream)
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    assert await transport.emit("w1", [tokens(claim, 0, "a", "b")]) == set()
    return job, claim


async def taken_over(transport: Transport, job: Job) -> Claim:
    """w1 has gone, and w2 has the job."""
    await transport.leave("w1")
    claim = await run_one(transport, "w2", job.id)
    assert claim.tokens == ("a", "b")
    return claim


async def events_of(transport: Transport, job: Job) -> tuple[Event, ...]:
    record = await transport.read(job.id)
    assert record is not None
    return record.events


async def can_rerun(transport: Transport, claim: Claim) -> bool:
    (left,) = await transport.rerun("w2", [claim])
    assert left is claim or (left.tokens == () and left.attempt > claim.attempt)
    return left is not claim


async def test_an_answer_begins_again_and_only_the_new_one_is_left(transport: Transport) -> None:
    listener = await Listener().listen(transport)
    job, first = await begun(transport)
    second = await taken_over(transport, job)
    (third,) = await transport.rerun("w2", [second])
    assert (third.job, third.tokens, third.num_deaths, third.cancelled) == (job, (), second.num_deaths, None)
    assert third.deadline_at == second.deadline_at
    started = Started(job.id, third.attempt, 0)
    assert await events_of(transport, job) == (started,)
    for late in (first, second):
        assert await transport.emit("w1", [tokens(late, 2, "late")]) == {job.id}
        assert await transport.emit("w1", [Done(job.id, late.attempt, 2, finish_reason="stop")]) == {job.id}
    end = Done(job.id, third.attempt, 1, tokens=("y",), finish_reason="stop")
    assert await transport.emit("w2", [tokens(third, 0, "x")]) == set()
    assert await transport.emit("w2", [end]) == set()
    assert fold(await events_of(transport, job)).tokens == ("x", "y")
    await wait_until(lambda: end in listener.events, "the end is published")
    ours = [
        event for event in listener.events if event.attempt == third.attempt
    ]  # late frames are published all the same
    assert ours == [started, tokens(third, 0, "x"), end]
    (seen,) = await transport.read_summary([job.id])
    assert seen is not None
    assert (seen.state, seen.num_claims, seen.num_deaths) == ("done", 2, 1)


async def test_what_was_read_to_a_position_is_read_on_from_the_beginning(transport: Transport) -> None:
    job, first = await begun(transport)
    (again,) = await transport.rerun("w2", [await taken_over(transport, job)])
    await transport.emit("w2", [tokens(again, 0, "x", "y", "z")])
    record = await transport.read(job.id, (first.attempt, 2))
    assert record is not None
    assert record.events == (Started(job.id, again.attempt, 0), tokens(again, 0, "x", "y", "z"))


async def test_a_claim_whose_rerun_was_lost_is_claimed_without_tokens(transport: Transport) -> None:
    job, _ = await begun(transport)
    (again,) = await transport.rerun("w2", [await taken_over(transport, job)])
    (repeated,) = await transport.claim("w2", [job.id])
    assert repeated.tokens == ()
    assert repeated.attempt > again.attempt
    assert await transport.emit("w2", [tokens(again, 0, "late")]) == {job.id}


async def test_a_stream_is_never_begun_again(transport: Transport) -> None:
    job, _ = await begun(transport, stream=True)
    claim = await taken_over(transport, job)
    assert not await can_rerun(transport, claim)
    assert fold(await events_of(transport, job)).tokens == ("a", "b")
    assert await transport.emit("w2", [tokens(claim, 2, "c")]) == set()


async def test_what_is_marked_as_read_is_not_begun_again(transport: Transport) -> None:
    job, first = await begun(transport)
    assert await transport.mark_read(job.id) == first.attempt
    assert not await can_rerun(transport, await taken_over(transport, job))
    assert await transport.mark_read("g1.none") == 0


async def test_a_mark_that_comes_too_late_shows_the_new_attempt(transport: Transport) -> None:
    job, _ = await begun(transport)
    (again,) = await transport.rerun("w2", [await taken_over(transport, job)])
    assert await transport.mark_read(job.id) == again.attempt
    await transport.emit("w2", [tokens(again, 0, "x")])
    await transport.hand_back("w2", [again])
    assert not await can_rerun(transport, await run_one(transport, "w2", job.id))


async def test_a_gateway_that_adopts_it_reads_it_unless_it_does_not(transport: Transport) -> None:
    job, _ = await begun(transport)
    assert await transport.adopt(job.id, "g2", is_read=False)
    assert await transport.adopt(job.id, "g2", is_read=False)
    claim = await taken_over(transport, job)
    assert await can_rerun(transport, claim)
    (claim,) = await transport.claim("w2", [job.id])
    assert await transport.cancel(job.id, "client", "g1") == "owned"  # its client has left; that of g2 waits
    assert await can_rerun(transport, claim)
    (claim,) = await transport.claim("w2", [job.id])
    assert await transport.adopt(job.id, "g3")
    assert not await can_rerun(transport, claim)
    assert await transport.adopt(job.id, "g4", is_read=False)
    assert not await can_rerun(transport, claim)


async def test_what_is_restored_begins_again_only_if_no_client_has_read_it(transport: Transport) -> None:
    unread, read = new_job(stream=False), new_job()
    await transport.enlist(new_worker("w2"))
    for job, may in ((unread, True), (read, False)):
        assert await transport.restore(job, "g1", ["a", "b"], 7)
        claim = await run_one(transport, "w2", job.id)
        assert claim.tokens == ("a", "b")
        assert await can_rerun(transport, claim) is may


async def test_a_restore_by_a_gateway_whose_client_has_read_it_is_a_mark(transport: Transport) -> None:
    """The store was rolled back to a moment before its mark."""
    job, first = await begun(transport)
    assert await transport.restore(new_job(id=job.id, stream=True), "g1", ["a", "b"], first.attempt)
    claim = await run_one(transport, "w2", job.id)
    assert not await can_rerun(transport, claim)
    assert await transport.restore(job, "g1", ["a", "b"], claim.attempt)  # another gateway gives back what it has
    assert not await can_rerun(transport, await run_one(transport, "w2", job.id))


async def test_what_is_no_longer_this_workers_is_left_out(transport: Transport) -> None:
    job, first = await begun(transport)
    claim = await taken_over(transport, job)
    assert await transport.rerun("w2", []) == []
    assert await transport.rerun("w1", [claim]) == []
    assert await transport.rerun("w2", [first]) == []
    (newer,) = await transport.claim("w2", [job.id])
    assert await transport.rerun("w2", [claim]) == []
    assert await transport.emit("w2", [Done(job.id, newer.attempt, 2, finish_reason="stop")]) == set()
    assert await transport.rerun("w2", [newer]) == []
    assert fold(await events_of(transport, job)).tokens == ("a", "b")


async def test_a_request_that_ends_each_worker_at_the_same_token_is_poison(transport: Transport) -> None:
    job = new_job(stream=False)
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW + 1):  # the first one has shown tokens that no other had
        worker = f"w{number}"
        await transport.enlist(new_worker(worker))
        claim = await run_one(transport, worker, job.id)
        assert claim.num_deaths == max(0, number - 1)
        if claim.tokens:
            (claim,) = await transport.rerun(worker, [claim])
        assert await transport.emit(worker, [tokens(claim, 0, "a", "b")]) == set()
        await transport.leave(worker)
    await transport.enlist(new_worker("w9"))
    await transport.take("w9", 1)
    assert await transport.claim("w9", [job.id]) == []
    end = (await events_of(transport, job))[-1]
    assert isinstance(end, Failed)
    assert end.code == "request_poisoned"


@pytest.mark.parametrize("how", ["created by an older gateway", "adopted by an older gateway"])
async def test_what_an_older_gateway_may_show_is_not_begun_again(
    real: RedisStore, client: redis.Redis, how: str
) -> None:
    """It does not know the field, and changes the others as it always has."""
    transport = await real.transport()
    job, _ = await begun(transport)
    if how == "created by an older gateway":
        client.hdel(keys.job(job.id), "unread")
    else:
        client.hset(keys.job(job.id), mapping={"owner": "g2", "readers": "g1,g2"})
    assert not await can_rerun(transport, await taken_over(transport, job))


async def test_its_log_lives_as_long_as_its_job(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    job, _ = await begun(transport)
    assert await can_rerun(transport, await taken_over(transport, job))
    of_job: Any = client.pexpiretime(keys.job(job.id))
    of_log: Any = client.pexpiretime(keys.log(job.id))
    assert of_log == of_job > 0
