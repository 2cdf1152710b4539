"""The contract of every transport: cancelling, deadlines, owners, and work that is given back or put right."""

from __future__ import annotations

import msgspec

from penstock.event import Done, Failed, Started, Terminal, Tokens, Usage, fold
from penstock.job import CancelReason, Job
from penstock.rich_token import RichToken
from penstock.transports import Transport
from penstock.transports.base import Outcome
from tests.support.stores import Listener, Store, new_job, new_worker, run_one, tokens
from tests.support.waiting import wait_until


async def test_cancelling_a_queued_job_ends_it_at_once(transport: Transport) -> None:
    listener = await Listener().listen(transport)
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
    await wait_until(lambda: listener.events == [end], "the end to be heard")
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
    assert not await transport.requeue_if_missing(jobs[1].id)  # it is there: nothing happens
    assert (await transport.tick("g1")).depth == 2
    lost = "g1.lost"
    assert await transport.requeue_if_missing(lost)
    assert await transport.take("w1", 9) == [lost, jobs[0].id, jobs[1].id]


async def test_restore_brings_back_the_tokens_of_the_client(transport: Transport) -> None:
    listener = await Listener().listen(transport)
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
    await wait_until(lambda: isinstance(listener.events[-1], Done), "the end")


async def test_restore_of_a_lost_job(transport: Transport) -> None:
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


def _outcome(job: Job, attempt: int, *texts: str, end: Terminal | None = None, keep_s: float = 60.0) -> Outcome:
    end = end or Done(job.id, attempt, len(texts), finish_reason="stop", usage=Usage(3, len(texts)))
    return Outcome(
        job=job,
        attempt=attempt,
        tokens=texts,
        end=end,
        keep_s=keep_s,
        created_ago_s=2.0,
        started_ago_s=1.5,
        first_token_ago_s=1.0,
        ended_ago_s=0.5,
    )


async def test_an_end_is_given_back_to_a_store_that_has_lost_the_request(store: Store) -> None:
    transport = await store.transport()
    listener = await Listener().listen(transport)
    job = new_job(caller="me", retention_s=600.0)
    token = RichToken("b", reasoning='\u00e4 "quoted" \n')
    outcome = msgspec.structs.replace(_outcome(job, 7, "a"), tokens=["a", token])
    assert await transport.restore_end(outcome, "g1")
    assert not await transport.restore_end(outcome, "g1")  # the reply had been lost
    record = await transport.read(job.id)
    assert record is not None
    assert (record.state, record.owner, record.job) == ("done", "g1", job)
    assert record.attempt > 7
    folded = fold(record.events)
    assert folded.tokens == ("a", token)
    assert folded.end == Done(job.id, record.attempt, 2, finish_reason="stop", usage=Usage(3, 1))
    assert 1.4 < record.now - record.created_at < 32.0
    ages = [record.now - at for at in (record.created_at, record.started_at, record.first_token_at, record.ended_at)]
    assert ages == sorted(ages, reverse=True)
    assert await transport.requests_of("me", 9) == [job.id]
    assert await transport.states([job.id, "g1.none"]) == {job.id: "done"}
    await wait_until(lambda: listener.events == [folded.end], "its end to be heard")


async def test_an_end_is_given_back_to_a_store_in_which_the_request_runs_again(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    waiting, running = new_job(), new_job()
    await transport.submit(running, "g1", 0)
    claim = await run_one(transport, "w1", running.id)
    await transport.emit("w1", [tokens(claim, 0, "other")])
    await transport.submit(waiting, "g1", 0)
    assert await transport.states([running.id, waiting.id]) == {running.id: "running", waiting.id: "queued"}
    failed = Failed(waiting.id, 3, 0, code="backend_error", message='It "failed".', param="prompt")
    assert await transport.restore_end(_outcome(running, 3, "a", "b"), "g1")
    assert await transport.restore_end(_outcome(waiting, 3, end=failed), "g1")
    assert await transport.waiting() == []
    assert await transport.emit("w1", [tokens(claim, 1, "more")]) == {running.id}
    for job, texts in ((running, ("a", "b")), (waiting, ())):
        record = await transport.read(job.id)
        assert record is not None
        assert record.state == "done"
        folded = fold(record.events)
        assert folded.tokens == texts
        assert record.attempt == folded.attempt
        if job is waiting:
            assert folded.end == msgspec.structs.replace(failed, attempt=record.attempt)


async def test_a_finished_request_does_not_change(transport: Transport) -> None:
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await transport.cancel(job.id, "client") == "ended"
    before = await transport.read(job.id)
    assert not await transport.restore_end(_outcome(job, 2**53, "a"), "g1")
    after = await transport.read(job.id)
    assert before is not None
    assert after is not None
    assert before.events == after.events


async def test_a_request_that_is_given_back_keeps_its_retention(store: Store) -> None:
    transport = await store.transport()
    job = new_job()
    assert await transport.restore_end(_outcome(job, 1, "a", keep_s=0.05), "g1")

    async def is_gone() -> bool:
        return await transport.read(job.id) is None

    await store.until(is_gone, "it is forgotten")


async def test_a_request_without_workers_ends_so_while_it_waits_only(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    runs, waits = new_job(), new_job()
    await transport.submit(runs, "g1", 0)
    await run_one(transport, "w1", runs.id)
    await transport.submit(waits, "g1", 0)
    assert await transport.cancel(runs.id, "no_workers", "g1") == "running"
    assert (await transport.renew(new_worker("w1"), [runs.id])).cancelled == {}
    assert await transport.cancel(waits.id, "no_workers", "g1") == "ended"
    record = await transport.read(waits.id)
    assert record is not None
    (end,) = record.events
    assert isinstance(end, Failed)
    assert end.code == "no_workers"
    assert await transport.waiting() == []


async def test_the_owner_gets_a_hint_of_a_cancel_and_a_reader_sees_it(store: Store) -> None:
    here, there = await store.transport(), await store.transport()
    hints: list[tuple[str, CancelReason]] = []
    await here.watch("g1", lambda job_id, reason: hints.append((job_id, reason)))
    await here.enlist(new_worker("w1"))
    job = new_job()
    await here.submit(job, "g1", 0)
    await run_one(here, "w1", job.id)
    assert await there.cancel(job.id, "client") == "marked"
    await wait_until(lambda: hints == [(job.id, "client")], "the owner has heard of it")
    record = await here.read(job.id)
    assert record is not None
    assert record.cancel == "client"


async def test_a_store_knows_the_gateways_that_have_ticked(store: Store) -> None:
    transport = await store.transport()
    assert not await transport.knows("g1")
    assert (await transport.tick("g1")).is_new
    assert not (await transport.tick("g1")).is_new
    assert await transport.knows("g1")
    assert not await transport.knows("g2")
