"""The contract of every transport: cancelling, deadlines, owners, and work that is given back or put right."""

from __future__ import annotations

from penstock.event import Done, Failed, Started, Tokens, fold
from penstock.job import CancelReason
from penstock.transports import Transport
from tests.contract.stores import Ear, Store, new_job, new_worker, run_one, tokens
from tests.waiting import wait_until


async def test_cancelling_a_queued_job_ends_it_at_once(transport: Transport) -> None:
    ear = await Ear().listen(transport)
    await transport.enlist(new_worker("w1"))
    job, next_ = new_job(), new_job()
    await transport.submit(job, "g1", 0)
    await transport.submit(next_, "g1", 0)
    assert await transport.cancel(job.id, "client") == "ended"
    assert await transport.cancel(job.id, "client") == "done"
    record = await transport.read(job.id)
    assert record is not None
    assert record.state == "done"
    (end,) = record.events
    assert isinstance(end, Done)
    assert (end.finish_reason, end.seq, end.attempt) == ("cancelled", 0, record.attempt)
    await wait_until(lambda: ear.events == [end], "the end to be heard")
    assert await transport.take("w1", 9) == [next_.id]


async def test_cancelling_a_running_job_marks_it_and_hints(store: Store) -> None:
    gateway, worker = await store.transport(), await store.transport()
    hints: list[tuple[str, CancelReason]] = []
    await worker.enlist(new_worker("w1"))
    await worker.watch("w1", lambda job_id, reason: hints.append((job_id, reason)))
    job, other = new_job(), new_job()
    await gateway.submit(job, "g1", 0)
    await gateway.submit(other, "g1", 0)
    await worker.claim("w1", await worker.take("w1", 2))
    assert (await worker.renew(new_worker("w1"), [job.id, other.id])).cancelled == {}
    assert await gateway.cancel(job.id, "operator") == "marked"
    assert await gateway.cancel(job.id, "client") == "marked"
    await wait_until(lambda: hints, "a hint")
    assert hints[0] == (job.id, "operator")
    renewal = await worker.renew(new_worker("w1"), [job.id, other.id])
    assert renewal.cancelled == {job.id: "operator"}  # the first reason stays
    assert renewal.gone == ()
    assert renewal.held == (job.id, other.id)


async def test_a_marked_job_is_ended_by_the_next_claim(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(claim, 0, "a")])
    assert await transport.cancel(job.id, "client") == "marked"
    await transport.hand_back("w1", [claim])
    assert await transport.take("w1", 1) == [job.id]
    assert await transport.claim("w1", [job.id]) == []
    assert await transport.take("w1", 0) == []
    record = await transport.read(job.id)
    assert record is not None
    end = record.events[-1]
    assert isinstance(end, Done)
    assert (end.finish_reason, end.seq) == ("cancelled", 1)


async def test_a_deadline_that_passes_in_the_queue(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    job, late = new_job(), new_job(timeout_s=0.05)
    await transport.submit(job, "g1", 0)
    await transport.submit(late, "g1", 0)

    async def is_late() -> bool:
        record = await transport.read(late.id)
        return record is not None and record.now > record.deadline_at

    await store.until(is_late, "the deadline to pass")
    assert await transport.cancel(job.id, "deadline") == "ended"  # the gateway's own timer
    assert await transport.take("w1", 2) == [late.id]
    assert await transport.claim("w1", [late.id]) == []  # found by the claim
    assert await transport.take("w1", 0) == []
    for job_id in (job.id, late.id):
        record = await transport.read(job_id)
        assert record is not None
        (end,) = record.events
        assert isinstance(end, Failed)
        assert (end.code, end.seq) == ("deadline_exceeded", 0)
        assert "timeout_s" in end.message


async def test_another_gateways_job_is_left_alone(transport: Transport) -> None:
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await transport.adopt(job.id, "g2")
    record = await transport.read(job.id)
    assert record is not None
    assert record.owner == "g2"
    assert await transport.cancel(job.id, "client", "g1") == "owned"
    assert await transport.cancel(job.id, "client", "g2") == "ended"


async def test_a_job_ends_once(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    end = Done(job.id, claim.attempt, 0, tokens=("a",), finish_reason="stop")
    assert await transport.emit("w1", [end]) == set()
    before = await transport.read(job.id)
    assert await transport.emit("w1", [end]) == set()  # a repetition of what had gone through
    for late in (
        tokens(claim, 1, "b"),
        tokens(claim, 1, "b", "c", "d"),
        Failed(job.id, claim.attempt + 1, 1, code="x", message="y"),
    ):
        assert await transport.emit("w1", [late]) == {job.id}
    assert await transport.cancel(job.id, "client") == "done"
    assert await transport.claim("w1", [job.id]) == []
    after = await transport.read(job.id)
    assert before is not None
    assert after is not None
    assert after.events == before.events
    assert after.ended_at == before.ended_at


async def test_work_given_back_is_at_the_head_oldest_first(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    await transport.enlist(new_worker("w2"))
    jobs = [new_job() for _ in range(4)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    ids = [job.id for job in jobs]
    assert await transport.take("w1", 3) == ids[:3]
    claims = await transport.claim("w1", ids[:3])
    await transport.emit(
        "w1", [tokens(claims[1], 0, "a", "b"), Done(ids[0], claims[0].attempt, 0, finish_reason="stop")]
    )
    await transport.hand_back("w1", claims)
    await transport.hand_back("w1", claims)  # after an unknown outcome: nothing is pushed twice
    assert await transport.take("w1", 0) == []
    assert await transport.take("w2", 9) == ids[1:]
    again = await transport.claim("w2", ids[1:])
    assert [claim.tokens for claim in again] == [("a", "b"), (), ()]
    assert [claim.num_deaths for claim in again] == [0, 0, 0]
    assert again[0].attempt > claims[1].attempt
    assert await transport.emit("w1", [tokens(claims[1], 2, "x")]) == {ids[1]}
    assert await transport.emit("w2", [tokens(again[0], 2, "c")]) == set()
    record = await transport.read(ids[1])
    assert record is not None
    assert fold(record.events).tokens == ("a", "b", "c")


async def test_ensure_puts_a_lost_id_at_the_head(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    jobs = [new_job() for _ in range(2)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    await transport.ensure(jobs[1].id)  # it is there: nothing happens
    assert (await transport.tick("g1")).depth == 2
    lost = "g1.lost"
    await transport.ensure(lost)
    assert await transport.take("w1", 9) == [lost, jobs[0].id, jobs[1].id]


async def test_restore_brings_back_what_the_client_has(transport: Transport) -> None:
    ear = await Ear().listen(transport)
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    short = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(short, 0, "a")])
    relayed = ["a", 'b "', "ç\n"]
    assert not await transport.restore(job, "g1", relayed, short.attempt - 1)  # a higher attempt has started
    assert await transport.restore(job, "g1", relayed, short.attempt)
    assert await transport.emit("w1", [tokens(short, 1, "x")]) == {job.id}  # the short attempt is fenced
    record = await transport.read(job.id)
    assert record is not None
    assert (record.state, record.attempt > short.attempt) == ("queued", True)
    assert record.events[-1] == Tokens(job.id, record.attempt, 0, tokens=("a", 'b "', "ç\n"))
    await transport.take("w1", 9)
    (claim,) = await transport.claim("w1", [job.id])
    assert claim.tokens == tuple(relayed)
    await transport.emit("w1", [Done(job.id, claim.attempt, 3, tokens=("d",), finish_reason="stop")])
    assert not await transport.restore(job, "g1", relayed, claim.attempt)  # done
    await wait_until(lambda: isinstance(ear.events[-1], Done), "the end")


async def test_restore_of_a_forgotten_job(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    assert await transport.restore(job, "g1", ["a", "b"], 7)
    claim = await run_one(transport, "w1", job.id)
    assert claim.job == job
    assert claim.tokens == ("a", "b")
    assert claim.attempt > 8
    record = await transport.read(job.id)
    assert record is not None
    assert record.events[-1] == Started(job.id, claim.attempt, 2)
    assert record.owner == "g1"


async def test_a_resubmitted_job_starts_above_its_floor(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    floor = 9_000_000_000_000  # far in the future of any clock in ms
    await transport.submit(job, "g1", 1, floor=floor, front=True)
    assert (await run_one(transport, "w1", job.id)).attempt == floor + 1


async def test_restore_may_be_repeated(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    short = await run_one(transport, "w1", job.id)
    for _ in range(3):  # the caller had no answer
        assert await transport.restore(job, "g1", ["a", "b"], short.attempt)
        assert await transport.waiting() == [job.id]
    assert await transport.take("w1", 9) == [job.id, job.id]  # as short, and again
    record = await transport.read(job.id)
    assert record is not None
    assert [event for event in record.events if isinstance(event, Tokens)] == [
        Tokens(job.id, record.attempt, 0, tokens=("a", "b"))
    ]
    (claim,) = await transport.claim("w1", [job.id])
    assert claim.tokens == ("a", "b")
    assert not await transport.restore(job, "g1", ["a", "b"], short.attempt)  # too late: it runs again
    await transport.hand_back("w1", [claim])
    assert not await transport.restore(job, "g1", ["a", "b"], short.attempt)
