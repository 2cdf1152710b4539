"""Each marked rule of the protocol as a script of accidents, on a real server. `test_rules.py` runs them.

A case raises `AssertionError` when its rule does not hold, and nothing else: it is run with the rule taken out, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from penstock.event import Done, Event, Failed, Tokens, fold
from penstock.gateway.relay import Relay, RelayStream, patience
from penstock.gateway.relay.table import MAX_PER_S
from penstock.job import Claim, Job
from penstock.transports import Transport
from penstock.transports.base import MAX_DEATHS_IN_A_ROW
from penstock.transports.redis import RedisTransport, keys
from tests.support.stores import SHORT_LEASE_S, RedisStore, new_job, new_worker, run_one, tokens
from tests.support.waiting import LONG_S, wait_until, wait_until_async

WITHIN_S = LONG_S  # shorter where the rule is taken out, and it is waited for in vain

Case = Callable[[RedisStore, redis.Redis], Awaitable[None]]

QUEUE = "inference:queue"


def held_by(worker: str) -> str:
    return f"{{{QUEUE}}}:worker:{worker}"


async def frames(transport: Transport, job_id: str) -> tuple[Event, ...]:
    record = await transport.read(job_id)
    assert record is not None
    return record.events


async def claimed(store: RedisStore, *workers: str) -> tuple[Transport, Claim]:
    """A fresh job, claimed by the first of these workers (w1)."""
    transport = await store.transport()
    for worker in workers or ("w1",):
        await transport.enlist(new_worker(worker))
    job = new_job()
    await transport.submit(job, "g1", 0)
    return transport, await run_one(transport, "w1", job.id)


async def orphan(store: RedisStore, client: redis.Redis, worker: str) -> None:
    """The worker's lease has lapsed and others have reaped it; it knows nothing of that."""
    client.zrem(f"{{{QUEUE}}}:workers", worker)
    client.hdel(f"{{{QUEUE}}}:clock", "amnesty")
    await (await store.transport()).reap(worker)


class Gateway:
    """A relay on the server, and what its subscription brings it: nothing while it `is_deaf`."""

    def __init__(self, transport: RedisTransport) -> None:
        self.transport = transport
        self.relay = Relay("g1", transport, max_depth=0)
        self.is_deaf = False
        self.num_resets = 0

    async def start(self) -> Gateway:
        await self.transport.listen("g1", self._hear, self._reset)
        return self

    def _hear(self, event: Event) -> None:
        if not self.is_deaf:
            self.relay.deliver(event)

    def _reset(self) -> None:
        self.num_resets += 1
        self.relay.invalidate_all()

    async def open(self) -> tuple[Job, RelayStream]:
        job = new_job(on_disconnect="continue")
        return job, (await self.relay.open(job)).stream

    async def has(self, stream: RelayStream, *texts: str) -> None:
        await wait_until(lambda: stream.tokens == list(texts), f"the client has {texts}, not {stream.tokens}", WITHIN_S)


async def gateway_of(store: RedisStore) -> Gateway:
    transport = await store.transport()
    assert isinstance(transport, RedisTransport)
    return await Gateway(transport).start()


@contextmanager
def impatient() -> Iterator[None]:
    """Rules 8 and 15 with short times: a gateway asks soon, and soon takes a silent job for lost."""
    usual = patience.STRANDED_S, patience.QUEUED_SILENCE_S
    patience.STRANDED_S, patience.QUEUED_SILENCE_S = 0.1, (0.05, 0.05, 0.05)
    try:
        yield
    finally:
        patience.STRANDED_S, patience.QUEUED_SILENCE_S = usual


# ── 1: the attempt is a fencing number, not a count ──────────────────────────────────────────────────────────────────


async def an_attempt_never_starts_again(store: RedisStore, client: redis.Redis) -> None:
    """Redis forgets everything, the job's gateway too has seen nothing; the worker of yesterday still writes."""
    transport, old = await claimed(store)
    job = old.job
    client.flushall()
    await wait_until(lambda: client.time()[0] * 1000 + client.time()[1] // 1000 > old.attempt, "a millisecond passes")
    await transport.enlist(new_worker("w2"))
    await transport.submit(job, "g1", 0, floor=0, front=True)
    new = await run_one(transport, "w2", job.id)
    assert await transport.emit("w1", [tokens(old, 0, "x")]) == {job.id}
    assert await transport.emit("w2", [tokens(new, 0, "a")]) == set()
    assert fold(await frames(transport, job.id)).tokens == ("a",)


async def a_resubmission_is_above_what_its_gateway_saw(store: RedisStore, client: redis.Redis) -> None:
    """The clock of the server that comes back is behind: the floor counts."""
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    floor = 9_000_000_000_000
    await transport.submit(job, "g1", 0, floor=floor, front=True)
    assert (await run_one(transport, "w1", job.id)).attempt > floor


# ── 2: only create, claim, finish and cancel make the log ────────────────────────────────────────────────────────────


async def a_worker_makes_no_log(store: RedisStore, client: redis.Redis) -> None:
    transport, claim = await claimed(store)
    job = claim.job
    await transport.emit("w1", [tokens(claim, 0, "a")])
    await transport.emit("w1", [tokens(claim, 1, "b")])
    client.flushall()
    assert await transport.emit("w1", [tokens(claim, 2, "c")]) == {job.id}, "what Redis forgot is dropped"
    assert client.keys() == [], "a log without a beginning, that never expires"


async def a_log_lives_as_long_as_its_job(store: RedisStore, client: redis.Redis) -> None:
    transport, claim = await claimed(store)
    job = claim.job
    for end in (None, Done(job.id, claim.attempt, 0, finish_reason="stop")):
        if end is not None:
            await transport.emit("w1", [end])
        of_job: Any = client.pexpiretime(keys.job(job.id))
        of_log: Any = client.pexpiretime(keys.log(job.id))
        assert abs(of_job - of_log) < 20


# ── 3: the terminal is one script with the state ─────────────────────────────────────────────────────────────────────


async def nobody_writes_behind_an_end(store: RedisStore, client: redis.Redis) -> None:
    """A job is handed back and cancelled while its worker's last frames are still on their way."""
    transport, claim = await claimed(store)
    job = claim.job
    await transport.emit("w1", [tokens(claim, 0, "a")])
    await transport.hand_back("w1", [claim])
    assert await transport.cancel(job.id, "client") == "ended"
    before = await frames(transport, job.id)
    for seq, text in ((1, "x"), (2, "y")):
        assert await transport.emit("w1", [tokens(claim, seq, text)]) == {job.id}
    assert await transport.emit("w1", [Done(job.id, claim.attempt, 3, finish_reason="stop")]) == {job.id}
    assert await frames(transport, job.id) == before


async def what_ended_is_not_run_again(store: RedisStore, client: redis.Redis) -> None:
    """A job has ended, and a second copy of its id comes out of the queue."""
    transport, claim = await claimed(store, "w1", "w2")
    job = claim.job
    await transport.emit("w1", [Done(job.id, claim.attempt, 0, tokens=("a",), finish_reason="stop")])
    await wait_until(lambda: not client.exists(held_by("w1")), "the finished job leaves its worker's list")
    await transport.requeue_if_missing(job.id)
    await transport.take("w2", 1)
    assert await transport.claim("w2", [job.id]) == []
    assert sum(isinstance(event, Done | Failed) for event in await frames(transport, job.id)) == 1


# ── 4: PUBLISH is fenced by nothing ──────────────────────────────────────────────────────────────────────────────────


async def a_new_subscription_believes_nothing_at_first(store: RedisStore, client: redis.Redis) -> None:
    """While a gateway hears nothing its job goes to another worker; then the first one wakes up and publishes."""
    gateway = await gateway_of(store)
    workers = await store.transport()
    await workers.enlist(new_worker("w1"))
    await workers.enlist(new_worker("w2"))
    job, stream = await gateway.open()
    old = await run_one(workers, "w1", job.id)
    await workers.emit("w1", [tokens(old, 0, "a")])
    await gateway.has(stream, "a")
    gateway.is_deaf = True
    await orphan(store, client, "w1")
    new = await run_one(workers, "w2", job.id)
    before = gateway.num_resets
    client.client_kill_filter(_type="pubsub")
    await wait_until(lambda: gateway.num_resets > before, "the gateway listens again")
    gateway.is_deaf = False
    assert await workers.emit("w1", [tokens(old, 1, "x")]) == {job.id}  # refused, and published all the same
    await workers.emit("w2", [Done(job.id, new.attempt, 1, tokens=("b",), finish_reason="stop")])
    await gateway.has(stream, "a", "b")


async def _a_short_log(store: RedisStore, client: redis.Redis) -> tuple[Gateway, RelayStream, Claim, Transport]:
    """The client has two tokens, the log has lost the second, and a worker has claimed the job after the first.

    The gateway did not hear of that claim.
    """
    gateway = await gateway_of(store)
    workers = await store.transport()
    await workers.enlist(new_worker("w1"))
    await workers.enlist(new_worker("w2"))
    job, stream = await gateway.open()
    old = await run_one(workers, "w1", job.id)
    for seq, text in enumerate(("a", "b")):
        await workers.emit("w1", [tokens(old, seq, text)])
    await gateway.has(stream, "a", "b")
    client.xdel(keys.log(job.id), f"{old.attempt}-2")
    await orphan(store, client, "w1")
    gateway.is_deaf = True
    short = await run_one(workers, "w2", job.id)
    assert short.tokens == ("a",)
    return gateway, stream, short, workers


async def only_started_begins_an_attempt(store: RedisStore, client: redis.Redis) -> None:
    """A frame of an attempt whose beginning was not heard fits by its number, and is of another answer."""
    gateway, stream, short, workers = await _a_short_log(store, client)
    await workers.emit("w2", [tokens(short, 1, "other")])
    await _pause(client)
    gateway.is_deaf = False
    await workers.emit("w2", [tokens(short, 2, "x")])
    await _goes_on_from_what_was_relayed(stream, workers)


# ── 5: the log may be behind the client ──────────────────────────────────────────────────────────────────────────────


async def a_short_log_is_restored(store: RedisStore, client: redis.Redis) -> None:
    gateway, stream, short, workers = await _a_short_log(store, client)
    gateway.is_deaf = False
    gateway.relay.invalidate_all()
    await _goes_on_from_what_was_relayed(stream, workers)
    assert await workers.emit("w2", [tokens(short, 1, "x")]) == {stream.job.id}, "the short attempt is fenced"


async def _goes_on_from_what_was_relayed(stream: RelayStream, workers: Transport) -> None:
    """The job is at the head of the queue, with the tokens that its client has."""

    async def is_back() -> bool:
        return stream.job.id in await workers.waiting()

    await wait_until_async(is_back, "the restored job waits", WITHIN_S)
    await workers.enlist(new_worker("w3"))
    claim = await run_one(workers, "w3", stream.job.id)
    assert claim.tokens == ("a", "b")
    await workers.emit("w3", [Done(stream.job.id, claim.attempt, 2, tokens=("c",), finish_reason="stop")])
    await wait_until(lambda: stream.end is not None, "the end", WITHIN_S)
    assert stream.tokens == ["a", "b", "c"]
    assert fold(await frames(workers, stream.job.id)).tokens == ("a", "b", "c")


async def _pause(client: redis.Redis) -> None:
    """Let what was published arrive: the server has sent it before it answered a later command."""
    client.ping()
    for _ in range(20):
        await asyncio.sleep(0)


# ── 6: the list, not the reply, is what a worker holds ───────────────────────────────────────────────────────────────


async def an_id_whose_reply_was_lost_is_claimed(store: RedisStore, client: redis.Redis) -> None:
    """A blocking pop moved an id, and its reply never came."""
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    jobs = [new_job() for _ in range(2)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    client.lmove(QUEUE, held_by("w1"), "LEFT", "RIGHT")
    held = await transport.take("w1", 1)
    assert [claim.job for claim in await transport.claim("w1", held)] == jobs


async def a_claim_whose_reply_was_lost_is_repeated(store: RedisStore, client: redis.Redis) -> None:
    transport, first = await claimed(store)
    job = first.job
    for _ in range(MAX_DEATHS_IN_A_ROW + 1):
        again = await transport.claim("w1", await transport.take("w1", 0))
        assert [(claim.job, claim.num_deaths, claim.attempt > first.attempt) for claim in again] == [(job, 0, True)]
    assert await transport.emit("w1", [tokens(first, 0, "x")]) == {job.id}


# ── 7: a duplicate id steals nothing ─────────────────────────────────────────────────────────────────────────────────


async def a_second_copy_steals_nothing(store: RedisStore, client: redis.Redis) -> None:
    transport, claim = await claimed(store, "w1", "w2")
    job = claim.job
    client.lpush(QUEUE, job.id)
    assert await transport.take("w2", 1) == [job.id]
    assert await transport.claim("w2", [job.id]) == []
    assert await transport.take("w2", 0) == [], "the copy is gone"
    assert await transport.emit("w1", [tokens(claim, 0, "a")]) == set(), "and the first one goes on"


async def who_lost_it_is_taken_over_from(store: RedisStore, client: redis.Redis) -> None:
    """The worker that the hash names lives, but its list does not hold the id any more."""
    transport, claim = await claimed(store, "w1", "w2")
    job = claim.job
    client.lmove(held_by("w1"), QUEUE, "LEFT", "LEFT")
    await transport.take("w2", 1)
    assert [claim.job for claim in await transport.claim("w2", [job.id])] == [job]


# ── 8: an id in no list ──────────────────────────────────────────────────────────────────────────────────────────────


async def what_is_in_no_list_is_pushed_again(store: RedisStore, client: redis.Redis) -> None:
    """A consumer with a bare left pop takes an id and is never heard of again."""
    with impatient():
        gateway = await gateway_of(store)
        job, _stream = await gateway.open()
        assert client.lpop(QUEUE) == job.id

        def is_back() -> bool:
            gateway.relay.look(time.monotonic())
            return client.lpos(QUEUE, job.id) is not None

        await wait_until(is_back, "the id is in the queue again", WITHIN_S)


async def at_most_ten_are_pushed_again_in_a_second(store: RedisStore, client: redis.Redis) -> None:
    with impatient():
        gateway = await gateway_of(store)
        streams = [(await gateway.open())[1] for _ in range(40)]
        client.delete(QUEUE)
        began = time.monotonic()

        def all_have_asked() -> bool:
            gateway.relay.look(time.monotonic())
            return all(stream.num_asked > 3 for stream in streams)

        await wait_until(all_have_asked, "every stream has asked several times")
        await gateway.relay.drain()
        seconds = int(time.monotonic()) - int(began) + 1
        assert 0 < client.llen(QUEUE) <= MAX_PER_S * seconds < len(streams)


# ── 9: deaths count in a row ─────────────────────────────────────────────────────────────────────────────────────────


async def _die(store: RedisStore, client: redis.Redis, worker: str, job_id: str, *texts: str) -> None:
    doomed = await store.transport(SHORT_LEASE_S)
    await doomed.enlist(new_worker(worker))
    await doomed.take(worker, 1)
    for claim in await doomed.claim(worker, [job_id]):
        if texts:
            await doomed.emit(worker, [tokens(claim, len(claim.tokens), *texts)])
    await orphan(store, client, worker)


async def deaths_without_a_token_are_poison(store: RedisStore, client: redis.Redis) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW):
        await _die(store, client, f"w{number}", job.id)
    await transport.enlist(new_worker("w9"))
    await transport.take("w9", 1)
    assert await transport.claim("w9", [job.id]) == []
    end = (await frames(transport, job.id))[-1]
    assert isinstance(end, Failed)
    assert end.code == "request_poisoned"


async def deaths_with_progress_are_not(store: RedisStore, client: redis.Redis) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW + 1):
        await _die(store, client, f"w{number}", job.id, "t")
    await transport.enlist(new_worker("w9"))
    await transport.take("w9", 1)
    claims = await transport.claim("w9", [job.id])
    assert [(claim.tokens, claim.num_deaths) for claim in claims] == [(("t",) * (MAX_DEATHS_IN_A_ROW + 1), 0)]


async def a_hand_back_is_no_death(store: RedisStore, client: redis.Redis) -> None:
    transport = await store.transport()
    job = new_job()
    await transport.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW + 2):
        await transport.enlist(new_worker(worker := f"w{number}"))
        await transport.take(worker, 1)
        claims = await transport.claim(worker, [job.id])
        assert [claim.num_deaths for claim in claims] == [0]
        await transport.hand_back(worker, claims)


# ── besides the marked ones: bytes once written are repeated unchanged, and a step's frame is there once ─────────────


async def a_repeated_frame_is_there_once(store: RedisStore, client: redis.Redis) -> None:
    """14: the reply to a step was lost, so it is sent again."""
    transport, claim = await claimed(store)
    job = claim.job
    for _ in range(2):
        assert await transport.emit("w1", [tokens(claim, 0, "a", "b")]) == set()
    assert await transport.emit("w1", [tokens(claim, 2, "c")]) == set()
    written = [event for event in await frames(transport, job.id) if isinstance(event, Tokens)]
    assert [event.tokens for event in written] == [("a", "b"), ("c",)]
