"""The contract of every transport: how a job goes down and its events come up, when nothing breaks."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import ConfigError, QueueFull
from penstock.event import Done, Event, Failed, Started, Tokens, Usage, fold
from penstock.fleet import Capabilities
from penstock.job import Message
from penstock.rich_token import Logprob, RichToken, ToolCall, encode_vector
from penstock.transports import Transport
from penstock.transports.base import RateLimit
from tests.support.stores import Listener, Store, new_job, new_worker, run_one, tokens
from tests.support.waiting import LONG_S, wait_until


def done(job_id: str, attempt: int, seq: int, *texts: str) -> Done:
    return Done(job_id, attempt, seq, tokens=texts, finish_reason="length", usage=Usage(2, seq + len(texts)))


async def test_a_job_goes_down_and_its_events_come_up(transport: Transport) -> None:
    listener = await Listener().listen(transport)
    job = new_job(messages=None, prompt='a "quoted" é \n \0 prompt', trace="t-1", user="\0u", metadata={"k\0": "\0"})
    assert await transport.submit(job, "g1", 10) == 1
    await transport.enlist(new_worker("w1"))
    claim = await run_one(transport, "w1", job.id)
    assert claim.job == job
    assert (claim.tokens, claim.num_deaths, claim.cancelled) == ((), 0, None)
    assert 0 <= claim.queued_s < 5
    first, end = tokens(claim, 0, "a", 'é "\\/\0'), done(job.id, claim.attempt, 2, " z")
    assert await transport.emit("w1", [first]) == set()
    assert await transport.emit("w1", [end]) == set()
    expected: list[Event] = [Started(job.id, claim.attempt, 0), first, end]
    await wait_until(lambda: len(listener.events) == 3, "three events")
    assert listener.events == expected
    record = await transport.read(job.id)
    assert record is not None
    assert (record.state, record.attempt, record.owner, record.num_claims) == ("done", claim.attempt, "g1", 1)
    assert list(record.events) == expected
    assert record.created_at <= record.started_at <= record.ended_at <= record.now < record.deadline_at
    assert await transport.take("w1", 4) == []


async def test_a_record_knows_when_its_first_token_came(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    slow, whole, silent = new_job(), new_job(), new_job()
    for job in (slow, whole, silent):
        await transport.submit(job, "g1", 0)
    claims = {claim.job.id: claim for claim in await transport.claim("w1", await transport.take("w1", 3))}
    await transport.emit("w1", [tokens(claims[slow.id], 0, "a")])
    last = [
        done(slow.id, claims[slow.id].attempt, 1, "b"),
        done(whole.id, claims[whole.id].attempt, 0, "a", "b"),
        done(silent.id, claims[silent.id].attempt, 0),
    ]
    assert await transport.emit("w1", last) == set()
    found = await transport.read_summary([slow.id, whole.id, silent.id])
    records = [record for record in found if record is not None]
    for record in records[:2]:
        assert record.started_at <= record.first_token_at <= record.ended_at + 0.002  # told by two clocks' difference
    assert records[2].first_token_at == 0.0


async def test_opening_again_changes_nothing_and_a_closed_store_listens_to_nothing(transport: Transport) -> None:
    await Listener().listen(transport)
    job = new_job()
    await transport.submit(job, "g1", 10)
    await transport.open()
    assert transport.is_listening
    assert await transport.states([job.id]) == {job.id: "queued"}
    await transport.close()
    assert not transport.is_listening
    await transport.close()  # as a process that is ended twice does


async def test_a_late_listener_receives_new_events_and_reads_earlier_ones(transport: Transport) -> None:
    assert not transport.is_listening
    job = new_job()
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [tokens(claim, 0, "a")])
    listener = await Listener().listen(transport)
    assert transport.is_listening
    await transport.emit("w1", [tokens(claim, 1, "b")])
    await wait_until(lambda: listener.events, "the second frame")
    assert listener.events == [tokens(claim, 1, "b")]
    record = await transport.read(job.id)
    assert record is not None
    assert record.events == (Started(job.id, claim.attempt, 0), tokens(claim, 0, "a"), tokens(claim, 1, "b"))
    assert record.state == "running"
    assert record.worker == "w1"


async def test_a_gateway_receives_events_of_its_own_jobs_only(store: Store) -> None:
    one, two = await store.transport(), await store.transport()
    listener = await Listener().listen(one, "g1")
    other = await Listener().listen(two, "g10")
    await two.enlist(new_worker("w1"))
    mine, theirs = new_job("g1"), new_job("g10")
    await one.submit(mine, "g1", 0)
    await two.submit(theirs, "g10", 0)
    await two.claim("w1", await two.take("w1", 2))
    await wait_until(lambda: listener.events and other.events, "both heard something")
    assert [event.job_id for event in listener.events] == [mine.id]
    assert [event.job_id for event in other.events] == [theirs.id]


async def test_take_keeps_the_order_and_returns_the_whole_list(transport: Transport) -> None:
    jobs = [new_job() for _ in range(5)]
    for place, job in enumerate(jobs, 1):
        assert await transport.submit(job, "g1", 0) == place
    await transport.enlist(new_worker("w1"))
    ids = [job.id for job in jobs]
    assert await transport.take("w1", 2) == ids[:2]
    assert await transport.take("w1", 0) == ids[:2]
    assert await transport.take("w1", 2) == ids[:4]
    assert [claim.job.id for claim in await transport.claim("w1", ids[:4])] == ids[:4]
    assert await transport.take("w1", 9) == ids
    assert (await transport.tick("g1")).num_taken == 5


async def test_the_depth_limit_is_exact_over_many_gateways(store: Store) -> None:
    gateways = [await store.transport() for _ in range(4)]
    jobs = [new_job() for _ in range(60)]
    outcomes = await asyncio.gather(
        *(gateways[i % 4].submit(job, f"g{i % 4}", 10) for i, job in enumerate(jobs)), return_exceptions=True
    )
    depths = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert sorted(depths) == list(range(1, 11))
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 50
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert (await gateways[0].read(job.id) is None) == isinstance(outcome, QueueFull), (
            "a refused job left something"
        )
    front = new_job()
    assert await gateways[1].submit(front, "g1", 0, front=True) == 11  # admitted before: never refused as full
    await gateways[0].enlist(new_worker("w1"))
    assert await gateways[0].take("w1", 1) == [front.id]


async def test_a_job_submitted_twice_runs_once(store: Store) -> None:
    transport, other = await store.transport(), await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    await other.enlist(new_worker("w2"))
    await transport.take("w1", 1)
    await other.take("w2", 8)
    (claim,) = await transport.claim("w1", [job.id])
    assert await other.claim("w2", [job.id]) == []  # busy: it runs at a live worker
    assert await other.take("w2", 8) == []
    assert await transport.take("w1", 0) == [job.id]
    assert await transport.emit("w1", [done(job.id, claim.attempt, 0, "x")]) == set()


async def test_wait_wakes_up_for_work_and_gives_up_in_time(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    assert await transport.wait("w1", 0.02) is None
    assert await transport.take("w1", 0) == []
    waiting = asyncio.create_task(transport.wait("w1", 5.0))
    await asyncio.sleep(0)
    job = new_job()
    await transport.submit(job, "g1", 0)
    assert await asyncio.wait_for(waiting, LONG_S) == job.id
    assert await transport.take("w1", 1) == [job.id]
    assert (await transport.tick("g1")).num_taken == 1


async def test_reading_continues_after_a_position_even_within_a_frame(transport: Transport) -> None:
    job = new_job()
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    claim = await run_one(transport, "w1", job.id)
    first, second = tokens(claim, 0, "a"), tokens(claim, 1, "b", "c", "d")
    end = done(job.id, claim.attempt, 4, "e", "f", "g")
    await transport.emit("w1", [first])
    await transport.emit("w1", [second])
    await transport.emit("w1", [end])
    for seen, expected in ((1, (second, end)), (2, (second, end)), (4, (end,)), (6, (end,)), (7, (end,))):
        record = await transport.read(job.id, (claim.attempt, seen))
        assert record is not None
        assert record.events == expected, f"after {seen} tokens"


async def test_tokens_that_are_more_than_text_go_the_same_way(transport: Transport) -> None:
    """Read, claimed again after a hand-back, and given back to a store that is behind: a rich token is one token."""
    listener = await Listener().listen(transport)
    await transport.enlist(new_worker("w1"))
    job = new_job(
        messages=(Message("user", "?"), Message("assistant", "", tool_calls=(ToolCall(0, "c", "f", "{}"),))),
        prompt=None,
        metadata={"team": "red"},
    )
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    said = (
        "plain",
        RichToken("with odds", logprobs=(Logprob("with odds", -0.5, (("with odds", -0.5),)),)),
        RichToken(tool_calls=(ToolCall(0, "call", "weather", '{"a": '),)),
        RichToken(reasoning="hm é"),
        RichToken(embedding=encode_vector([0.5, -1])),
    )
    await transport.emit("w1", [Tokens(job.id, claim.attempt, 0, tokens=said[:2])])
    await transport.emit("w1", [Tokens(job.id, claim.attempt, 2, tokens=said[2:])])
    record = await transport.read(job.id)
    assert record is not None
    assert record.job == job
    assert fold(record.events).tokens == said
    await transport.hand_back("w1", [claim])
    again = await run_one(transport, "w1", job.id)
    assert again.tokens == said
    assert await transport.restore(job, "g1", (*said, "more"), again.attempt)
    last = await run_one(transport, "w1", job.id)
    assert last.tokens == (*said, "more")
    await transport.emit("w1", [Done(job.id, last.attempt, 6, finish_reason="tool_calls")])
    await wait_until(lambda: any(isinstance(event, Done) for event in listener.events), "the end is heard")
    assert fold(event for event in listener.events if event.attempt == claim.attempt).tokens == said


async def test_a_job_with_a_task_and_one_of_token_ids_go_the_same_way(transport: Transport) -> None:
    await transport.enlist(new_worker("w1", models={"m": Capabilities(tasks=("score",), accepts=("token_ids",))}))
    assert (await transport.tick("g1")).models["m"].tasks == ("score",)
    scored = new_job(prompt=None, task="score", queries=("q",), inputs=("a", "b"))
    for job in (scored, new_job(prompt=(5, 67)), new_job(prompt=None, inputs=((5, 67), (8,)))):
        await transport.submit(job, "g1", 0)
        claim = await run_one(transport, "w1", job.id)
        assert claim.job == job
        await transport.emit("w1", [Tokens(job.id, claim.attempt, 0, tokens=("0.5",))])
        await transport.hand_back("w1", [claim])
        again = await run_one(transport, "w1", job.id)
        assert (again.job, again.tokens) == (job, ("0.5",))
        await transport.emit("w1", [Done(job.id, again.attempt, 1, finish_reason="stop")])


async def test_several_frames_of_one_job_in_one_step(transport: Transport) -> None:
    job = new_job()
    await transport.submit(job, "g1", 0)
    await transport.enlist(new_worker("w1"))
    claim = await run_one(transport, "w1", job.id)
    step: list[Event] = [tokens(claim, 0, "a"), tokens(claim, 1, "b"), done(job.id, claim.attempt, 2)]
    assert await transport.emit("w1", step) == set()
    record = await transport.read(job.id)
    assert record is not None
    assert list(record.events[1:]) == step


async def test_a_tick_sees_the_pool(store: Store) -> None:
    transport = await store.transport()
    assert (await transport.tick("g1")).workers == ()
    info = new_worker("w1", host="h", pid=7, version="1")
    await transport.enlist(info)
    for _ in range(3):
        await transport.submit(new_job(), "g1", 0)
    pool = await transport.tick("g1")
    assert (pool.depth, pool.num_taken, pool.workers) == (3, 0, (info,))
    assert pool.models == info.models
    await transport.take("w1", 2)
    pool = await transport.tick("g1")
    assert (pool.depth, pool.num_taken) == (1, 2)


async def test_workers_of_a_pool_must_agree(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    await transport.enlist(new_worker("w2"))
    with pytest.raises(ConfigError, match=r"w[12] of this pool serves"):
        await transport.enlist(new_worker("w3", models={"n": Capabilities()}))
    with pytest.raises(ConfigError, match="must agree"):
        await transport.enlist(new_worker("w4", models={"m": Capabilities(), "n": Capabilities()}))
    assert {info.id for info in (await transport.tick("g1")).workers} == {"w1", "w2"}


async def test_a_pool_has_the_abilities_that_all_of_its_workers_have(store: Store) -> None:
    """So that a release with more abilities is rolled out one process after the other."""
    transport = await store.transport()
    old = Capabilities(accepts=("stop", "seed"), resumes=True)
    new = Capabilities(accepts=("seed", "tools"), resumes=True, embeds=True, max_tokens=100)
    await transport.enlist(new_worker("w1", models={"m": old}))
    await transport.enlist(new_worker("w2", models={"m": new}))
    pool = await transport.tick("g1")
    assert pool.models == {"m": Capabilities(accepts=("seed",), resumes=True, max_tokens=100)}
    await transport.leave("w1")
    assert (await transport.tick("g1")).models == {"m": new}


async def test_a_worker_that_leaves_is_not_seen_any_more(transport: Transport) -> None:
    await transport.enlist(new_worker("w1"))
    await transport.leave("w1")
    assert (await transport.tick("g1")).workers == ()
    await transport.enlist(new_worker("w2", models={"n": Capabilities()}))


async def test_charge_limits_and_recovers(store: Store) -> None:
    one, two = await store.transport(), await store.transport()
    limit = RateLimit(rpm=60, burst=3)  # one a second
    verdicts = [await (one, two)[i % 2].charge("key-1", limit) for i in range(3)]
    assert [verdict.is_allowed for verdict in verdicts] == [True, True, True]
    refused = await one.charge("key-1", limit)
    assert not refused.is_allowed
    assert refused.remaining == 0
    assert 0 < refused.retry_after_s <= 1
    assert (await two.charge("2001:db8::/64", limit)).remaining == 2
    again = None

    async def recovered() -> bool:
        nonlocal again
        again = await two.charge("key-1", limit)
        return again.is_allowed

    await store.until(recovered, "the limiter lets one more in")
    assert again is not None
    assert 2 < again.reset_s <= 3


async def test_what_was_counted_can_be_given_back(store: Store) -> None:
    one, two = await store.transport(), await store.transport()
    limit = RateLimit(rpm=1, burst=5)
    assert (await one.charge("k", limit, 3)).remaining == 2
    assert (await two.charge("k", limit, -2)).remaining == 4
    assert (await one.charge("k", limit, 4)).remaining == 0
    assert not (await two.charge("k", limit)).is_allowed
    given_back = await two.charge("k", limit, -1)
    assert (given_back.is_allowed, given_back.remaining) == (True, 1), "also where nothing is left"
    assert 239 < given_back.reset_s <= 240
    for _ in range(3):
        whole = await one.charge("k", limit, -5)
        assert (whole.remaining, whole.reset_s) == (5, 0.0), "no more than the burst, whatever comes back"
    assert (await one.charge("k", limit, 5)).remaining == 0


async def test_a_huge_limit_never_refuses(transport: Transport) -> None:
    limit = RateLimit(rpm=1_000_000_000, burst=1_000_000_000)
    verdicts = [await transport.charge("k", limit) for _ in range(20)]
    assert all(verdict.is_allowed and verdict.remaining > 999_999_900 for verdict in verdicts)


async def test_a_retired_job_expires(store: Store) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    await transport.cancel(job.id, "client")
    transport.retire(job.id, 3600.0)  # it would not be kept so long
    assert await transport.read(job.id) is not None
    transport.retire(job.id, 0.05)

    async def is_gone() -> bool:
        return await transport.read(job.id) is None

    await store.until(is_gone, "the retired job to go")


async def test_an_unknown_request_is_none(transport: Transport) -> None:
    assert await transport.read("g1.none") is None
    assert await transport.cancel("g1.none", "client") == "gone"
    assert not await transport.adopt("g1.none", "g2")
    assert await transport.claim("w1", ["g1.none"]) == []
    assert await transport.emit("w1", [Failed("g1.none", 1, 0, code="backend_error", message="x")]) == {"g1.none"}
    transport.retire("g1.none", 1.0)
    await transport.enlist(new_worker("w1"))
    assert (await transport.renew(new_worker("w1"), ["g1.none"])).gone == ("g1.none",)
