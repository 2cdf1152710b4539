"""The contract of every transport: workers and gateways that die, freeze, wake up, or lose a reply."""

from __future__ import annotations

from penstock.event import Done, Event, Failed, Started, fold
from penstock.transports import Transport
from penstock.transports.base import MAX_DEATHS_IN_A_ROW
from tests.support.stores import SHORT_LEASE_S, Store, new_job, new_worker, run_one, tokens


async def reaped(store: Store, transport: Transport, worker: str, expected: int) -> None:
    """Wait for the worker's lease to lapse, and reap what it held."""
    moved: list[int] = []

    async def reap() -> bool:
        moved.append(await transport.reap(worker))
        return moved[-1] > 0

    await store.until(reap, f"{worker} to be reaped")
    assert moved[-1] == expected
    assert await transport.reap(worker) == 0


async def test_another_worker_continues_the_work_of_a_dead_one(store: Store) -> None:
    doomed = await store.transport(SHORT_LEASE_S)
    await doomed.enlist(new_worker("w1"))
    jobs = [new_job() for _ in range(3)]
    for job in jobs:
        await doomed.submit(job, "g1", 0)
    ids = [job.id for job in jobs]
    assert await doomed.take("w1", 2) == ids[:2]
    (old,) = await doomed.claim("w1", ids[:1])  # one runs, one is only held
    await doomed.emit("w1", [tokens(old, 0, "a", "b")])
    assert await doomed.reap("w1") == 0  # it lives

    other = await store.transport()
    await reaped(store, other, "w1", 2)
    await other.enlist(new_worker("w2"))
    assert await other.take("w2", 9) == ids  # at the head, the oldest first
    claims = await other.claim("w2", ids)
    assert [claim.tokens for claim in claims] == [("a", "b"), (), ()]
    assert claims[0].attempt > old.attempt
    assert [claim.num_deaths for claim in claims[1:]] == [0, 0]  # held only: it had not started

    # The frozen one wakes up: fenced, without having heard anything.
    late: list[Event] = [tokens(old, 2, "x"), Done(ids[0], old.attempt, 3, finish_reason="stop")]
    assert await doomed.emit("w1", late[:1]) == {ids[0]}
    assert await doomed.emit("w1", late) == {ids[0]}
    assert (await doomed.renew(new_worker("w1"), ids[:1])).is_lost
    assert await other.emit("w2", [Done(ids[0], claims[0].attempt, 2, tokens=("c",), finish_reason="stop")]) == set()
    record = await other.read(ids[0])
    assert record is not None
    assert fold(record.events).tokens == ("a", "b", "c")
    assert (record.num_claims, record.num_deaths) == (2, 1)
    assert Started(ids[0], claims[0].attempt, 2) in record.events


async def test_renew_returns_lost_leases_dead_workers_and_absent_gateways(store: Store) -> None:
    doomed = await store.transport(SHORT_LEASE_S)
    await doomed.enlist(new_worker("w1"))
    await doomed.enlist(new_worker("w2"))
    mine, theirs, over = new_job(), new_job(), new_job()
    for job in (mine, theirs, over):
        await doomed.submit(job, "g1", 0)
    held = await doomed.take("w1", 1)
    await doomed.take("w2", 2)
    await doomed.claim("w1", [mine.id])
    await doomed.claim("w2", [theirs.id, over.id])
    dead: tuple[str, ...] = ()

    async def w2_is_dead() -> bool:
        nonlocal dead
        renewal = await doomed.renew(new_worker("w1"), [mine.id, theirs.id])
        assert not renewal.is_lost
        assert renewal.held == tuple(held)
        assert renewal.gone == (theirs.id,)
        dead = renewal.dead
        return "w2" in dead

    await store.until(w2_is_dead, "w1 to hear that w2 is dead")
    assert "w1" not in dead
    assert await doomed.reap("w2") == 2


async def test_a_claim_repeated_by_the_same_worker_is_not_a_death(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claims = [await run_one(transport, "w1", job.id)]
    for _ in range(MAX_DEATHS_IN_A_ROW + 1):  # each time the reply was lost
        claims += await transport.claim("w1", [job.id])
    assert [claim.num_deaths for claim in claims] == [0] * len(claims)
    attempts = [claim.attempt for claim in claims]
    assert attempts == sorted(set(attempts))
    assert await transport.emit("w1", [tokens(claims[0], 0, "x")]) == {job.id}
    assert await transport.emit("w1", [tokens(claims[-1], 0, "a")]) == set()
    record = await transport.read(job.id)
    assert record is not None
    assert fold(record.events).tokens == ("a",)


async def test_a_frame_sent_again_is_there_once(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    frames = [tokens(claim, 0, "a", "b"), tokens(claim, 2, "c")]
    for _ in range(2):
        assert await transport.emit("w1", frames[:1]) == set()
    assert await transport.emit("w1", frames) == set()
    assert await transport.emit("w1", [*frames[1:], Done(job.id, claim.attempt, 3, finish_reason="stop")]) == set()
    record = await transport.read(job.id)
    assert record is not None
    assert list(record.events[1:-1]) == frames


async def _die(store: Store, name: str, job_id: str, *texts: str) -> None:
    """A worker takes the job, says `texts`, and is never heard of again."""
    doomed = await store.transport(SHORT_LEASE_S)
    await doomed.enlist(new_worker(name))
    await doomed.take(name, 1)
    for claim in await doomed.claim(name, [job_id]):
        if texts:
            await doomed.emit(name, [tokens(claim, len(claim.tokens), *texts)])
        await reaped(store, doomed, name, 1)


async def test_three_deaths_in_a_row_are_poison(store: Store) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW):
        await _die(store, f"w{number}", job.id)
    await transport.enlist(new_worker("w9"))
    assert await transport.take("w9", 1) == [job.id]
    assert await transport.claim("w9", [job.id]) == []
    assert await transport.take("w9", 1) == []
    record = await transport.read(job.id)
    assert record is not None
    end = record.events[-1]
    assert isinstance(end, Failed)
    assert (end.code, record.num_deaths) == ("request_poisoned", MAX_DEATHS_IN_A_ROW)


async def test_deaths_with_progress_in_between_are_not(store: Store) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW + 1):
        await _die(store, f"w{number}", job.id, "tick ")
    await transport.enlist(new_worker("w9"))
    claim = await run_one(transport, "w9", job.id)
    assert claim.tokens == ("tick ",) * (MAX_DEATHS_IN_A_ROW + 1)
    assert claim.num_deaths == 0  # it has got on: no suspect


async def test_a_duplicate_id_steals_nothing(store: Store) -> None:
    one, two = await store.transport(), await store.transport()
    await one.enlist(new_worker("w1"))
    await two.enlist(new_worker("w2"))
    job = new_job()
    await one.submit(job, "g1", 0)
    claim = await run_one(one, "w1", job.id)
    await one.requeue_if_missing(job.id)  # it is in no queue, but it runs
    assert await two.take("w2", 1) == [job.id]
    assert await two.claim("w2", [job.id]) == []
    assert await two.take("w2", 0) == []
    assert await one.emit("w1", [tokens(claim, 0, "a")]) == set()
    assert await one.take("w1", 0) == [job.id]


async def test_a_job_of_a_live_worker_is_not_ended_by_the_claim_of_another(store: Store) -> None:
    one, two = await store.transport(), await store.transport()
    await one.enlist(new_worker("w1"))
    await two.enlist(new_worker("w2"))
    unwanted, late = new_job(), new_job(timeout_s=0.05)
    claims = []
    for job in (unwanted, late):
        await one.submit(job, "g1", 0)
        claims.append(await run_one(one, "w1", job.id))
    assert await one.cancel(unwanted.id, "client") == "marked"

    async def is_late() -> bool:
        record = await one.read(late.id)
        return record is not None and record.now > record.deadline_at

    await store.until(is_late, "the deadline to pass")
    for claim in claims:
        await two.requeue_if_missing(claim.job.id)  # a second copy of the id
        assert await two.take("w2", 1) == [claim.job.id]
        assert await two.claim("w2", [claim.job.id]) == []
        assert await two.take("w2", 0) == []
        record = await two.read(claim.job.id)
        assert record is not None
        assert (record.state, record.worker) == ("running", "w1")
        assert await one.emit("w1", [Done(claim.job.id, claim.attempt, 0, finish_reason="cancelled")]) == set()
