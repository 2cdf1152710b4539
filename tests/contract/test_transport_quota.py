"""What one caller may have, over every transport: its share of the queue, and what is stored for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import redis

from penstock.errors import QueueFull, StorageQuota, StoreUnavailable
from penstock.event import Done
from penstock.job import Job, Message, Sampling
from penstock.rich_token import Logprob, RichToken, encode_vector
from penstock.tasks import Tokenized, encode
from penstock.transports import Transport
from penstock.transports.base import NO_SHARE
from penstock.transports.memory import MemoryTransport
from penstock.transports.quota import (
    AHEAD_TOKENS,
    REQUEST_BYTES,
    TOKEN_BYTES,
    VECTOR_BYTES,
    Share,
    answer_bytes,
    booked_answer_bytes,
    booked_tokens,
)
from penstock.transports.redis import RedisTransport, keys, weighing
from penstock.transports.redis.driver import link
from tests.support.servers import redis_client
from tests.support.stores import RedisStore, Store, new_job, new_worker, run_one
from tests.support.waiting import wait_until_async


async def _has_room(transport: Transport, share: Share, caller: str = "bob") -> bool:
    """Is one more small request taken?"""
    try:
        await transport.submit(new_job(caller=caller), "g1", 0, share=share)
    except StorageQuota:
        return False
    return True


async def _end(transport: Transport, worker: str, job_id: str) -> None:
    claim = await run_one(transport, worker, job_id)
    assert await transport.emit(worker, [Done(job_id, claim.attempt, 0, finish_reason="stop")]) == set()


# ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_has_its_share_of_the_queue_and_no_more(store: Store) -> None:
    """Exact over two gateways, and of those that wait: what a worker takes makes room."""
    here, there = await store.transport(), await store.transport()
    share = Share(max_queued=3)
    bobs = [new_job(caller="bob") for _ in range(3)]
    for number, job in enumerate(bobs):
        await (here, there)[number % 2].submit(job, "g1", 10, share=share)
    for transport in (here, there):
        with pytest.raises(QueueFull, match=r"3 requests of this caller are waiting.*MAX_QUEUED_PER_CALLER"):
            await transport.submit(new_job(caller="bob"), "g1", 10, share=share)
    await here.submit(new_job(caller="alice"), "g1", 10, share=share)
    for _ in range(5):  # those without a key cannot be told apart
        await here.submit(new_job(caller=""), "g1", 10, share=share)
    assert len(await here.waiting()) == 9
    await here.enlist(new_worker("w1"))
    await run_one(here, "w1", bobs[0].id)
    assert await here.cancel(bobs[1].id, "client") == "ended"
    left: list[str] = []

    async def two_more() -> bool:
        try:
            job = new_job(caller="bob")
            await there.submit(job, "g1", 20, share=share)
            left.append(job.id)
        except QueueFull:
            return len(left) == 2
        return False

    await store.until(two_more, "two more to be taken, and no third")
    assert set(left) <= set(await here.waiting())


async def test_a_refused_request_leaves_nothing(store: Store) -> None:
    transport = await store.transport()
    job = new_job(caller="bob")
    for share in (Share(max_queued=1), Share(max_stored=1)):
        await transport.submit(job, "g1", 0, share=share)
        refused = new_job(caller="bob")
        with pytest.raises((QueueFull, StorageQuota)):
            await transport.submit(refused, "g1", 0, share=share)
        assert await transport.read(refused.id) is None
        assert refused.id not in await transport.waiting()

        async def is_listed_alone() -> bool:
            return await transport.requests_of("bob", 10) == [job.id]

        await store.until(is_listed_alone, "the refused one to be off the list")


# ── what is stored ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_stores_so_many_requests(store: Store) -> None:
    here, there = await store.transport(), await store.transport()
    share = Share(max_stored=4)
    taken = [await _has_room((here, there)[number % 2], share) for number in range(7)]
    assert taken == [True] * 4 + [False] * 3
    assert await _has_room(here, share, "alice")
    with pytest.raises(StorageQuota, match=r"at most 4 may be \(PENSTOCK_MAX_STORED_PER_CALLER\)") as caught:
        await there.submit(new_job(caller="bob"), "g1", 0, share=share)
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 120


async def test_a_caller_stores_so_many_bytes(store: Store) -> None:
    """Until its end a request counts with the answer that was booked for it, then with the one it has."""
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored_bytes=200_000)
    large = new_job(caller="bob", sampling=Sampling(max_tokens=1200))  # 153,600 bytes
    await transport.submit(large, "g1", 0, share=share)
    another = new_job(caller="bob", prompt="x" * 100_000)
    with pytest.raises(StorageQuota, match=r"at most 200000 may be \(PENSTOCK_MAX_STORED_BYTES_PER_CALLER\)"):
        await transport.submit(another, "g1", 0, share=share)
    await _end(transport, "w1", large.id)
    for _ in range(2):  # two gateways may have heard its end
        transport.weigh(large, 10 * TOKEN_BYTES, 60.0)
    await transport.submit(another, "g1", 0, share=share)
    with pytest.raises(StorageQuota):
        await transport.submit(new_job(caller="bob", prompt="x" * 100_000), "g1", 0, share=share)


async def test_an_answer_that_grows_counts_with_more(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored_bytes=3 * AHEAD_TOKENS * TOKEN_BYTES)
    long = new_job(caller="bob", sampling=Sampling(max_tokens=100_000))
    half = new_job(caller="bob", sampling=Sampling(max_tokens=AHEAD_TOKENS))
    await transport.submit(long, "g1", 0, share=share)
    transport.grow(long, booked_answer_bytes(long, AHEAD_TOKENS), 60.0)  # twice as much as before
    with pytest.raises(StorageQuota):
        await transport.submit(half, "g1", 0, share=share)
    await _end(transport, "w1", long.id)
    transport.weigh(long, AHEAD_TOKENS * TOKEN_BYTES, 60.0)

    async def is_taken() -> bool:
        try:
            await transport.submit(half, "g1", 0, share=share)
        except StorageQuota:
            return False
        return True

    await store.until(is_taken, "its answer to count at its size")


async def test_a_request_booked_twice_counts_once(store: Store) -> None:
    transport = await store.transport()
    share = Share(max_stored=2, max_stored_bytes=10_000)
    job = new_job(caller="bob", prompt="x" * 4_000)
    for _ in range(5):  # submitted again, as its outcome was not known; after a loss of data, without a limit
        await transport.submit(job, "g1", 0, share=share)
        await transport.submit(job, "g1", 0, front=True)
    assert await _has_room(transport, share)
    assert not await _has_room(transport, share)
    assert len(await transport.requests_of("bob", 10)) == 2


async def test_expired_requests_make_room(store: Store) -> None:
    transport = await store.transport()
    share = Share(max_stored=2)
    for _ in range(2):
        job = new_job(caller="bob", timeout_s=0.05, retention_s=0.05)
        await transport.submit(job, "g1", 0, share=share)
    assert not await _has_room(transport, share)

    async def has_room() -> bool:
        return await _has_room(transport, share)

    await store.until(has_room, "the two to expire")


async def test_an_ended_request_makes_room_when_it_expires(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored=1)
    job = new_job(caller="bob", retention_s=3600.0)
    await transport.submit(job, "g1", 0, share=share)
    await _end(transport, "w1", job.id)
    transport.retire(job.id, 0.05)
    transport.weigh(job, 0, 0.05)

    async def has_room() -> bool:
        return await _has_room(transport, share)

    await store.until(has_room, "it to expire")


async def test_a_request_that_a_client_cancels_is_not_kept_long(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    running, waiting = new_job(retention_s=7200.0), new_job(retention_s=7200.0)
    late = new_job(retention_s=7200.0)
    for job in (running, waiting, late):
        await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", running.id)
    assert await transport.cancel(running.id, "client") == "marked"
    await transport.emit("w1", [Done(running.id, claim.attempt, 0, finish_reason="cancelled")])
    assert await transport.cancel(waiting.id, "operator") == "ended"
    assert await transport.cancel(late.id, "deadline") == "ended"
    if isinstance(store, RedisStore) and not store.clients:
        with redis_client(store.url) as client:
            left = [client.pttl(keys.job(job.id)) for job in (running, waiting, late)]
        assert [int(ms) > 7_000_000 for ms in left] == [False, False, True]
    elif isinstance(transport, MemoryTransport):
        entries = [transport.snapshot().jobs[job.id] for job in (running, waiting, late)]
        assert [entry.expires_at - entry.ended_at for entry in entries] == [60.0, 60.0, 7200.0]


async def test_the_books_come_out_even(real: RedisStore, client: redis.Redis) -> None:
    """Whatever happened to the requests, the sum is that of what is booked."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored=50, max_stored_bytes=100_000, max_queued=20)
    for number in range(120):
        job = new_job(caller="bob", prompt="x" * (number * 37 % 500), timeout_s=0.01 + number % 3, retention_s=0.01)
        try:
            await transport.submit(job, "g1", 15, share=share)
        except (QueueFull, StorageQuota):
            continue
        if number % 4 == 0:
            await transport.take("w1", 1)
        if number % 2 == 0:
            transport.weigh(job, number, 0.001 * number)
        elif number % 5 == 0:
            await transport.cancel(job.id, "client")
    _, stored, sizes = keys.caller("bob")
    booked = client.hgetall(sizes)
    assert isinstance(booked, dict)
    total = int(booked.pop("sum"))
    del booked["due"]
    assert total == sum(sum(map(int, entry.split())) for entry in booked.values())
    assert set(booked) == set(client.zrange(stored, 0, -1))


async def test_books_that_are_lost_begin_anew(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    share = Share(max_stored=2)
    job = new_job(caller="bob")
    await transport.submit(job, "g1", 0, share=share)
    client.flushall()
    await transport.submit(job, "g1", 0, front=True)
    assert await _has_room(transport, share)
    assert not await _has_room(transport, share)
    client.delete(keys.caller("bob")[2])  # half of them: nothing is refused or raised for that
    transport.weigh(job, 0, 1.0)
    assert not await _has_room(transport, share)


@pytest.mark.parametrize("is_near", [False, True], ids=["booked with the rest", "booked first"])
@pytest.mark.parametrize("name", [*keys.caller("bob"), keys.PoolKeys().waiting("bob")])
async def test_books_of_a_wrong_type_are_begun_anew(
    real: RedisStore, client: redis.Redis, name: str, is_near: bool
) -> None:
    """The request that finds them so is booked all the same."""
    transport = await real.transport()
    share = Share(max_stored=10, max_queued=10)
    num = 9 if is_near else 1
    for _ in range(num):
        await transport.submit(new_job(caller="bob"), "g1", 0, share=share)
    client.set(name, "a string", px=60_000)
    job = new_job(caller="bob")
    assert await transport.submit(job, "g1", 0, share=share) == num + 1
    _, stored, sizes = keys.caller("bob")
    assert client.zscore(stored, job.id) is not None
    assert client.hexists(sizes, job.id)
    transport.weigh(new_job(caller="bob"), 0, 1.0)


async def test_a_request_begun_beyond_the_share_is_ended(real: RedisStore, client: redis.Redis) -> None:
    """Another gateway has used up the share, and a worker is faster than the refusal."""
    here, there = await real.transport(), await real.transport()
    share = Share(max_stored=2)
    await there.submit(new_job(caller="bob"), "g1", 0, share=NO_SHARE)
    await there.submit(new_job(caller="bob"), "g1", 0, share=NO_SHARE)
    refused = new_job(caller="bob")
    with pytest.raises(StorageQuota):
        await here.submit(refused, "g1", 0, share=share)  # the first that this one hears of it
    assert await here.read(refused.id) is None
    assert refused.id not in await here.waiting()
    calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    with pytest.raises(StorageQuota):  # from now on it is asked first
        await here.submit(new_job(caller="bob"), "g1", 0, share=share)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1


# ── the memory of a process ──────────────────────────────────────────────────────────────────────────────────────────


async def test_memory_has_a_bound() -> None:
    now = 1_800_000_000.0
    transport = MemoryTransport(max_bytes=500_000, now=lambda: now)

    async def store_one(caller: str) -> None:
        job = new_job(caller=caller, prompt="x" * 50_000, sampling=Sampling(max_tokens=1))
        await transport.submit(job, "g1", 0)

    for number in range(9):
        await store_one(f"caller-{number}")
    with pytest.raises(StoreUnavailable, match=r"at most 500000 are kept \(PENSTOCK_MAX_MEMORY_BYTES\)"):
        await store_one("another")
    now += 700.0  # their timeout and retention
    await transport.submit(new_job(prompt="x" * 400_000), "g1", 0)


def test_how_an_answer_is_counted() -> None:
    text = new_job(sampling=Sampling(max_tokens=100))
    assert booked_answer_bytes(text) == 100 * TOKEN_BYTES
    assert answer_bytes(text, ["a", "b"]) == 2 * TOKEN_BYTES
    long = new_job(sampling=Sampling(max_tokens=10_000))
    assert [booked_tokens(long, num) for num in (0, 2048, 2049, 4096, 4097, 10_001)] == [
        *[AHEAD_TOKENS] * 2, *[2 * AHEAD_TOKENS] * 2, 10_000, 10_001,
    ]  # fmt: skip
    assert booked_answer_bytes(long) == AHEAD_TOKENS * TOKEN_BYTES
    texts = new_job(prompt=None, inputs=("a", "b", "c"))
    assert booked_answer_bytes(texts) == 3 * VECTOR_BYTES
    assert REQUEST_BYTES > 0


def test_results_of_tasks_are_counted_by_their_size() -> None:
    def task(name: str, **fields: Any) -> Job:
        return new_job(task=name, **({"prompt": None} | fields))

    text = "a b " * 100
    ids = encode(Tokenized(tuple(range(2**40, 2**40 + 200)), ("ab",) * 200))
    cases = [
        (task("count", prompt=text), ["200"]),
        (task("tokenize", prompt=text), [ids]),
        (task("detokenize", inputs=(tuple(range(200)),)), ["token " * 200]),
        (task("score", queries=("q",), inputs=("a", "b")), ["0.123456789012345", "-1e-300"]),
        (task("tokenizer_info"), ["x" * 100_000]),
    ]
    for job, tokens in cases:
        assert sum(map(len, tokens)) < answer_bytes(job, tokens) <= booked_answer_bytes(job), job.task


def test_log_probabilities_and_long_vectors_are_counted_by_their_size() -> None:
    likely = new_job(sampling=Sampling(max_tokens=100, logprobs=20))
    names = tuple((f"token{number}", -1.25) for number in range(20))
    token = RichToken("token", logprobs=(Logprob("token", -0.125, names),))
    assert answer_bytes(likely, [token] * 100) == booked_answer_bytes(likely) > 100 * len(msgspec.msgpack.encode(token))
    vector = RichToken(embedding=encode_vector([0.5] * 65_536))
    long = new_job(prompt=None, inputs=("a", "b"), sampling=Sampling(dimensions=65_536))
    assert booked_answer_bytes(long) == answer_bytes(long, [vector, vector]) > 2 * len(vector.embedding)
    short = new_job(prompt=None, inputs=("a", "b"), sampling=Sampling(dimensions=8))
    assert booked_answer_bytes(short) == 2 * VECTOR_BYTES


@pytest.mark.parametrize("planted", ["inf", "-inf", "nan", "-1e300", "1e300", "-1"])
async def test_a_sum_that_is_none_is_added_up_anew(real: RedisStore, client: redis.Redis, planted: str) -> None:
    """It neither shuts a caller out nor lets it in without a limit."""
    transport = await real.transport()
    share = Share(max_stored_bytes=200_000)
    await transport.submit(new_job(caller="bob", prompt="x" * 50_000), "g1", 0, share=share)
    _, _, sizes = keys.caller("bob")
    before = client.hget(sizes, "sum")
    client.hset(sizes, "sum", planted)
    assert await _has_room(transport, share)
    with pytest.raises(StorageQuota):
        await transport.submit(new_job(caller="bob", prompt="x" * 150_000), "g1", 0, share=share)
    booked = client.hgetall(sizes)
    assert isinstance(booked, dict)
    total = int(booked.pop("sum"))
    del booked["due"]
    assert total == sum(sum(map(int, entry.split())) for entry in booked.values()) > int(str(before))


async def test_after_its_end_a_job_keeps_only_messages_that_no_other_job_has(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    messages = (Message("system", "s"), *(Message("user", "x" * 10_000) for _ in range(5)), Message("user", "own"))
    share = Share(max_stored_bytes=120_000)
    job = new_job(caller="bob", prompt=None, messages=messages, repeated=(1, 6), retention_s=600.0)
    await transport.submit(job, "g1", 0, share=share)
    claim = await run_one(transport, "w1", job.id)
    assert claim.job.messages == messages
    with pytest.raises(StorageQuota):
        await transport.submit(new_job(caller="bob", prompt="x" * 100_000), "g1", 0, share=share)
    await transport.emit("w1", [Done(job.id, claim.attempt, 0, finish_reason="stop")])
    transport.weigh(job, 0, 600.0)

    async def is_short() -> bool:
        record = await transport.read(job.id)
        return record is not None and record.job.messages == (messages[0], messages[-1])

    await store.until(is_short, "the job to be shortened")
    await transport.submit(new_job(caller="bob", prompt="x" * 100_000), "g1", 0, share=share)


async def test_a_response_that_others_continue_is_kept_longer_and_counts_longer(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    share = Share(max_stored=1)
    job = new_job(caller="bob", retention_s=0.05)
    await transport.submit(job, "g1", 0, share=share)
    await _end(transport, "w1", job.id)
    transport.weigh(job, 0, 0.05)
    transport.prolong(job, 0, 600.0)
    transport.prolong(job, 0, 0.01)  # never shorter
    other = new_job(retention_s=0.1)
    await transport.submit(other, "g1", 0)
    assert await transport.cancel(other.id, "client") == "ended"

    async def has_expired() -> bool:
        return await transport.read(other.id) is None

    await store.until(has_expired, "another one to expire")
    assert await transport.read(job.id) is not None
    assert not await _has_room(transport, share)


# ── the books in Redis: what is swept, and when ──────────────────────────────────────────────────────────────────────

_, STORED, SIZES = keys.caller("bob")


def _booked(client: redis.Redis) -> dict[str, int]:
    """The bytes of each of Bob's requests. The sum is theirs, and none expires before the books are looked at again."""
    entries: Any = client.hgetall(SIZES)
    expiries: Any = client.zrange(STORED, 0, -1, withscores=True)
    total, due = int(entries.pop("sum")), int(entries.pop("due"))
    sizes = {name: sum(map(int, entry.split())) for name, entry in entries.items()}
    assert total == sum(sizes.values())
    assert sizes.keys() == {name for name, _ in expiries}
    assert due <= min((int(at) for _, at in expiries), default=due)
    return sizes


def _expire(client: redis.Redis, *jobs: Job) -> None:
    """As if their time had passed, and the books had not been looked at since."""
    client.zadd(STORED, {job.id: 1 for job in jobs}, xx=True)


async def test_a_caller_at_its_limit_gets_the_room_of_requests_that_have_just_expired(
    real: RedisStore, client: redis.Redis
) -> None:
    """Else it is refused what it may have until the books are looked at the next time."""
    transport = await real.transport()
    first, second = (new_job(caller="bob", prompt="x" * 60_000) for _ in range(2))
    for share in (Share(max_stored=2), Share(max_stored_bytes=150_000)):
        for job in (first, second):
            await transport.submit(job, "g1", 0, share=share)
        _expire(client, first)
        await transport.submit(new_job(caller="bob", prompt="x" * 60_000), "g1", 0, share=share)
        assert first.id not in _booked(client)
        client.flushall()


@pytest.mark.parametrize("due", ["1", "0", "9" * 14, "inf", "nan", "text", "", None])
async def test_expired_requests_are_removed_although_no_limit_is_near(
    real: RedisStore, client: redis.Redis, due: str | None
) -> None:
    """Whenever it is time for that, and where the time of that is none."""
    transport = await real.transport()
    old, kept, new = (new_job(caller="bob") for _ in range(3))
    await transport.submit(old, "g1", 0)
    await transport.submit(kept, "g1", 0)
    _expire(client, old)
    if due is None:
        client.hdel(SIZES, "due")
    else:
        client.hset(SIZES, "due", due)
    await transport.submit(new, "g1", 0)
    assert _booked(client).keys() == {kept.id, new.id}
    assert int(client.hget(SIZES, "due") or 0) == int(client.zrange(STORED, 0, 0, withscores=True)[0][1])


async def test_the_books_are_looked_at_before_the_first_of_them_expires(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    long, short = new_job(caller="bob"), new_job(caller="bob", timeout_s=50.0, retention_s=10.0)
    for job in (long, short):  # of two bookings the later one may be over sooner
        await transport.submit(job, "g1", 0)
        _booked(client)
    transport.weigh(long, 0, 2.0)  # and so may one that has ended

    async def is_weighed() -> bool:
        expiries: Any = client.zrange(STORED, 0, -1, withscores=True)
        return [name for name, _ in expiries] == [long.id, short.id]

    await wait_until_async(is_weighed, "it is kept for 2 s more")
    assert _booked(client).keys() == {long.id, short.id}


async def test_a_request_that_is_booked_again_after_it_expired_counts_once(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport()
    job, other = new_job(caller="bob", prompt="x" * 500), new_job(caller="bob")
    await transport.submit(job, "g1", 0)
    await transport.submit(other, "g1", 0)
    before = _booked(client)
    _expire(client, job)
    client.hset(SIZES, "due", 1)
    await transport.submit(job, "g1", 0, front=True)
    assert _booked(client) == before


async def test_books_without_a_request_begin_at_nothing(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.submit(new_job(caller="bob"), "g1", 0)
    client.delete(STORED)
    job = new_job(caller="bob")
    await transport.submit(job, "g1", 0)
    assert _booked(client).keys() == {job.id}


async def test_the_list_of_a_callers_requests_has_a_bound(
    real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shortened once in a hundred requests."""
    monkeypatch.setattr(keys, "MAX_LISTED", 5)
    transport = await real.transport()
    jobs = [new_job(caller="bob") for _ in range(106)]
    for job in jobs[:105]:
        await transport.submit(job, "g1", 0)
    assert client.llen(keys.caller("bob")[0]) == 105
    await transport.submit(jobs[105], "g1", 0)
    assert await transport.requests_of("bob", 1000) == [job.id for job in reversed(jobs[101:])]


async def test_requests_that_end_together_are_each_weighed(real: RedisStore, client: redis.Redis) -> None:
    """In one script, whatever each of them is: one that is heard of twice, one that is unknown, those of others."""
    transport = await real.transport()
    first, twice, refused, kept = (new_job(caller="bob", prompt="x" * 500) for _ in range(4))
    alices = new_job(caller="alice")
    for job in (first, twice, refused, kept, alices):
        await transport.submit(job, "g1", 0)
    before = _booked(client)
    hers = str(client.hget(keys.caller("alice")[2], alices.id)).split()
    most = booked_answer_bytes(first)
    transport.weigh(first, 1 * TOKEN_BYTES, 60.0)
    transport.weigh(twice, 3 * TOKEN_BYTES, 60.0)
    transport.weigh(new_job(caller="bob"), 0, 60.0)
    assert isinstance(transport, RedisTransport)
    transport._books.unbook(refused)
    transport._books.unbook(refused)
    transport.weigh(twice, 2 * TOKEN_BYTES, 60.0)
    transport.weigh(twice, 9 * most, 10_000.0)  # never raised
    transport.weigh(alices, 0, 60.0)

    async def is_weighed() -> bool:
        return client.zscore(STORED, refused.id) is None

    await wait_until_async(is_weighed, "they are weighed")
    assert _booked(client) == {
        first.id: before[first.id] - most + TOKEN_BYTES,
        twice.id: before[twice.id] - most + 2 * TOKEN_BYTES,
        kept.id: before[kept.id],
    }
    expiries: Any = client.zrange(STORED, 0, -1, withscores=True)
    assert {name for name, at in expiries if at < dict(expiries)[kept.id]} == {first.id, twice.id}
    assert await transport.requests_of("bob", 10) == [kept.id, twice.id, first.id]

    async def is_alices_weighed() -> bool:
        return client.hget(keys.caller("alice")[2], alices.id) == f"{hers[0]} 0"

    await wait_until_async(is_alices_weighed, "hers is weighed")


# ── when what has ended is told to the store ─────────────────────────────────────────────────────────────────────────


async def test_ended_requests_are_counted_before_the_next_booking_near_the_limit(
    real: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "WITHIN_S", 3600.0)
    transport = await real.transport()
    share = Share(max_stored_bytes=200_000)
    large = new_job(caller="bob", sampling=Sampling(max_tokens=1200))  # 153,600 bytes
    await transport.submit(large, "g1", 0, share=share)
    another = new_job(caller="bob", prompt="x" * 100_000)
    with pytest.raises(StorageQuota):  # from now on it is asked first
        await transport.submit(another, "g1", 0, share=share)
    transport.weigh(large, 0, 60.0)
    await transport.submit(another, "g1", 0, share=share)


async def test_a_request_that_is_kept_longer_is_weighed_first(
    real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "WITHIN_S", 3600.0)
    transport = await real.transport()
    job = new_job(caller="bob")
    await transport.submit(job, "g1", 0)
    transport.weigh(job, 0, 5.0)
    transport.prolong(job, 0, 7200.0)
    await transport.close()

    async def is_kept() -> bool:
        now: Any = client.time()
        score: Any = client.zscore(STORED, job.id)
        return bool(score / 1000 - now[0] > 7000)

    await wait_until_async(is_kept, "it is kept for the two hours")


async def test_ended_requests_are_weighed_at_the_end_of_the_process_too(
    real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "WITHIN_S", 3600.0)
    monkeypatch.setattr(link, "POST_WITHIN_S", 3600.0)
    transport = await real.transport()
    job = new_job(caller="bob")
    await transport.submit(job, "g1", 0)
    before = _booked(client)[job.id]
    transport.weigh(job, 0, 60.0)
    await transport.close()

    async def is_weighed() -> bool:
        return _booked(client)[job.id] == before - booked_answer_bytes(job)

    await wait_until_async(is_weighed, "it is weighed")


async def test_a_hundred_that_ended_do_not_wait_for_more(
    real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighing, "WITHIN_S", 3600.0)
    monkeypatch.setattr(weighing, "MAX_AT_ONCE", 3)
    transport = await real.transport()
    jobs = [new_job(caller="bob") for _ in range(4)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    before = _booked(client)
    for job in jobs:
        transport.weigh(job, 0, 60.0)

    async def are_weighed() -> bool:
        return sum(size < before[name] for name, size in _booked(client).items()) == 3

    await wait_until_async(are_weighed, "three of them are weighed, and the fourth waits")
