"""Workers and producers that others wrote, on the same Redis: what they may write, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from penstock.errors import ConfigError, InternalError
from penstock.event import Done, Failed, Tokens
from penstock.fleet import Capabilities
from penstock.gateway.relay import Reader, Relay
from penstock.transports import Transport, memory
from penstock.transports.base import LEASE_S, MAX_DEATHS, MAX_DEATHS_IN_A_ROW
from penstock.transports.redis import RedisTransport, keys
from penstock.transports.redis.scripts import SCRIPTS, Script
from penstock.wire import encode_job, encode_json
from tests.support.stores import SHORT_LEASE_S, RedisStore, new_job, new_worker, run_one
from tests.support.waiting import wait_until

END = "18446744073709551615"


@asynccontextmanager
async def asked(transport: Transport, worker: str = "w1") -> AsyncIterator[tuple[Relay, Reader, int]]:
    """A request that a client of gateway `g1` reads, claimed by `worker`: its relay, the reader and the attempt."""
    relay = Relay("g1", transport, max_depth=0)
    await transport.listen("g1", relay.deliver, relay.invalidate_all)
    await transport.enlist(new_worker(worker))
    watching = asyncio.create_task(relay.watch())
    try:
        reader = await relay.open(new_job())
        claim = await run_one(transport, worker, reader.stream.job.id)
        yield relay, reader, claim.attempt
    finally:
        watching.cancel()
        await relay.drain()


def write(client: redis.Redis, job_id: str, entry: str, frame: str, *, is_end: bool) -> None:
    """A frame as it stands, into the log, and the state with it."""
    client.xadd(keys.log(job_id), {"f": frame}, id=entry, nomkstream=True)
    if is_end:
        client.hset(keys.job(job_id), mapping={"state": "done", "ended": "1"})
    client.publish(keys.channel(job_id), frame)


UNREADABLE_ENDS = {
    "no reason": '{"kind":"done","id":"ID","attempt":A,"seq":0,"tokens":["a"]}',
    "no message": '{"kind":"failed","id":"ID","attempt":A,"seq":0,"code":"backend_error"}',
    "a number as a token": '{"kind":"done","id":"ID","attempt":A,"seq":0,"tokens":[1],"finish_reason":"stop"}',
    "an attempt as text": '{"kind":"done","id":"ID","attempt":"A","seq":0,"tokens":["a"],"finish_reason":"stop"}',
    "half a surrogate": '{"kind":"done","id":"ID","attempt":A,"seq":0,"tokens":["\\ud83d"],"finish_reason":"stop"}',
    "a place below zero": '{"kind":"done","id":"ID","attempt":A,"seq":-1,"finish_reason":"stop"}',
    "no JSON": "done!",
    "deep": '{"kind":"done","id":"ID","attempt":A,"seq":0,"finish_reason":"stop","x":' + "[" * 5000 + "]" * 5000 + "}",
}


@pytest.mark.parametrize("frame", UNREADABLE_ENDS.values(), ids=UNREADABLE_ENDS)
async def test_an_end_that_cannot_be_read_ends_the_request_at_once(
    real: RedisStore, client: redis.Redis, frame: str
) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        frame = frame.replace("ID", job_id).replace("A", str(attempt))
        write(client, job_id, f"{attempt}-{END}", frame, is_end=True)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Failed)
        assert reader.stream.end.code == "internal_error"
        record = await transport.read(job_id)
        assert record is not None
        assert isinstance(record.events[-1], Failed)
        (summary,) = await transport.read_summary([job_id])
        assert summary is not None
        assert isinstance(summary.end, Failed)


ENDS_THAT_ARE_NONE = {
    "started": '{"kind":"started","id":"ID","attempt":A,"seq":0}',
    "tokens": '{"kind":"tokens","id":"ID","attempt":A,"seq":0,"tokens":["a"]}',
    "a kind to come": '{"kind":"thoughts","id":"ID","attempt":A,"seq":0}',
    "an older attempt": '{"kind":"done","id":"ID","attempt":5,"seq":0,"finish_reason":"stop"}',
    "behind a hole": '{"kind":"done","id":"ID","attempt":A,"seq":77,"finish_reason":"stop"}',
    "no log": "",
}


@pytest.mark.parametrize("what", ENDS_THAT_ARE_NONE)
async def test_an_unreadable_end_is_an_error_for_every_reader(real: RedisStore, client: redis.Redis, what: str) -> None:
    """Also for one that comes later: no other one follows, so its wait would not end."""
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        frame = ENDS_THAT_ARE_NONE[what].replace("ID", job_id).replace("A", str(attempt))
        write(client, job_id, f"{attempt}-{END}", frame, is_end=True)
        if not frame:
            client.delete(keys.log(job_id))
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        record = await transport.read(job_id)
        assert record is not None
        stream = await Relay("g2", transport, max_depth=0).attach(job_id, record)
        (summary,) = await transport.read_summary([job_id])
        assert summary is not None
        for end in (reader.stream.end, record.events[-1], stream.end):
            assert isinstance(end, Failed)
            assert end.code == "internal_error"
        if what not in ("an older attempt", "behind a hole"):  # a list reads the last frame alone
            assert isinstance(summary.end, Failed)


async def test_tokens_that_cannot_be_read_end_the_request_and_its_work(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        good = f'{{"kind":"tokens","id":"{job_id}","attempt":{attempt},"seq":0,"tokens":["a","b"]}}'
        write(client, job_id, f"{attempt}-2", good, is_end=False)
        bad = f'{{"kind":"tokens","id":"{job_id}","attempt":{attempt},"seq":2,"tokens":[null]}}'
        write(client, job_id, f"{attempt}-3", bad, is_end=False)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        end = reader.stream.end
        assert isinstance(end, Failed)
        assert (end.code, end.seq, reader.stream.tokens) == ("internal_error", 2, ["a", "b"])
        await wait_until(lambda: client.hget(keys.job(job_id), "cancel") == "operator", "the worker to be stopped")


async def test_unknown_values_of_a_newer_worker_are_understood(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        head = f'"id":"{job_id}","attempt":{attempt}'
        write(client, job_id, f"{attempt}-1", f'{{"kind":"thoughts",{head},"seq":0,"tokens":["a"]}}', is_end=False)
        write(client, job_id, f"{attempt}-2", f'{{"kind":"tokens",{head},"seq":1,"tokens":["b"],"x":1}}', is_end=False)
        last = f'{{"kind":"done",{head},"seq":2,"tokens":["c"],"finish_reason":"refusal","usage":{{"x":1}}}}'
        write(client, job_id, f"{attempt}-{END}", last, is_end=True)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Done)
        assert (reader.stream.end.finish_reason, reader.stream.tokens) == ("stop", ["a", "b", "c"])
        record = await transport.read(job_id)
        assert record is not None
        assert [type(event) for event in record.events[1:]] == [Tokens, Tokens, Done]


async def test_a_request_that_cannot_be_read_is_an_error_for_its_reader_alone(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        client.hset(keys.job(job_id), "job", json.dumps({"v": 1, "job": {"id": job_id}}))
        with pytest.raises(InternalError, match="cannot read"):
            await transport.read(job_id)
        (summary,) = await transport.read_summary([job_id])  # a list does not need the job
        assert summary is not None
        last = f'{{"kind":"done","id":"{job_id}","attempt":{attempt},"seq":0,"tokens":["a"],"finish_reason":"stop"}}'
        write(client, job_id, f"{attempt}-{END}", last, is_end=True)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")  # nor does a stream that has it
        assert isinstance(reader.stream.end, Done)


async def test_an_end_without_its_log_is_an_error_for_a_reader_with_a_part_of_the_answer(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport()
    async with asked(transport) as (relay, reader, attempt):
        job_id = reader.stream.job.id
        frame = f'{{"kind":"tokens","id":"{job_id}","attempt":{attempt},"seq":0,"tokens":["a"]}}'
        write(client, job_id, f"{attempt}-1", frame, is_end=False)
        await wait_until(lambda: reader.stream.tokens == ["a"], "the first token")
        client.hset(keys.job(job_id), mapping={"state": "done", "ended": "1"})
        client.delete(keys.log(job_id))
        relay.invalidate_all()
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Failed)
        assert (reader.stream.end.code, reader.stream.tokens) == ("internal_error", ["a"])


async def test_a_request_in_whose_place_another_key_lies_ends_for_its_reader(
    real: RedisStore, client: redis.Redis
) -> None:
    """At once: asking again would change nothing until its time is over."""
    transport = await real.transport()
    async with asked(transport) as (relay, reader, _):
        name = keys.job(reader.stream.job.id)
        client.delete(name)
        client.set(name, "x", px=60_000)
        relay.invalidate_all()
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Failed)
        assert reader.stream.end.code == "internal_error"


@pytest.mark.parametrize("attempt_said", [None, 2**53, 10**20], ids=["no frame", "2**53", "10**20"])
async def test_rubbish_on_the_channel_alone_harms_nothing(
    real: RedisStore, client: redis.Redis, caplog: pytest.LogCaptureFixture, attempt_said: int | None
) -> None:
    """No frame, or one of an attempt that nothing could follow, which its gateway would wait for until the deadline."""
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        forged = f'{{"kind":"started","id":"{job_id}","attempt":{attempt_said},"seq":0}}'
        for _ in range(50):
            client.publish(keys.channel(job_id), "rubbish" if attempt_said is None else forged)
        head = f'"id":"{job_id}","attempt":{attempt}'
        last = f'{{"kind":"done",{head},"seq":0,"tokens":["a"],"finish_reason":"stop"}}'
        write(client, job_id, f"{attempt}-{END}", last, is_end=True)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Done)
        assert sum("cannot be read" in line for line in caplog.messages) == 1


# ── what workers say of themselves ───────────────────────────────────────────────────────────────────────────────────

POOL = keys.PoolKeys()


@pytest.mark.parametrize("about", ["x", "[]", "{}", '{"id":"other","models":7}', '{"id":"w9","models":{"m":{}}}'])
async def test_an_unreadable_announcement_is_refused_and_harms_no_other_worker(
    real: RedisStore, client: redis.Redis, about: str
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    on: tuple[str, ...] = (POOL.workers, POOL.about, POOL.clock, POOL.worker("w1"), POOL.gateways)
    with pytest.raises(redis.ResponseError, match="announces must be"):
        client.eval(Script("renew").source.decode(), len(on), *on, "w1", about)
    on = (POOL.workers, POOL.about, POOL.clock, POOL.gateways)
    refusal: Any = client.eval(Script("enlist").source.decode(), len(on), *on, "w9", about)
    assert "must be a JSON object with its `id`, `models`" in refusal
    client.hset(POOL.about, "w1", about)  # by a worker of another release, say
    await transport.enlist(new_worker("w2"))
    await transport.enlist(new_worker("w3"))
    assert [worker.id for worker in (await transport.tick("g1")).workers] == ["w2", "w3"]
    with pytest.raises(ConfigError, match=r"w[23] of this pool serves m and this one would serve n"):
        await transport.enlist(new_worker("w4", models={"n": Capabilities()}))


async def test_only_the_names_of_models_must_agree(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    for number, can in enumerate(("{}", '{"accepts":["stop","seed"]}', '{"tools":true,"max_tokens":null}')):
        about = f'{{"id":"f{number}","models":{{"m":{can}}},"num_slots":1,"num_free":1,"more":[1]}}'
        on = (POOL.workers, POOL.about, POOL.clock, POOL.gateways)
        assert client.eval(Script("enlist").source.decode(), len(on), *on, f"f{number}", about) == ""
    pool = await transport.tick("g1")
    assert [worker.id for worker in pool.workers] == ["f0", "f1", "f2", "w1"]
    assert pool.models == {"m": Capabilities(max_tokens=100)}


async def test_workers_that_cannot_be_read_are_logged_seldom(
    real: RedisStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    client.hset(POOL.about, "w1", '{"id":"w1"}')
    for _ in range(5):
        assert (await transport.tick("g1")).workers == ()
    assert sum("a worker announces" in line for line in caplog.messages) == 1


# ── which protocol a pool speaks ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_process_of_another_protocol_waits_until_the_pool_is_empty(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport(SHORT_LEASE_S)
    await transport.tick("g1")
    await transport.enlist(new_worker("w1"))
    assert client.hget(POOL.clock, "protocol") == "1"
    client.hset(POOL.clock, "protocol", "2")  # as if those were of a release to come
    with pytest.raises(ConfigError, match="speaks protocol 2 and this worker protocol 1: stop the other"):
        await transport.enlist(new_worker("w2"))
    with pytest.raises(ConfigError, match="speaks protocol 2 and this gateway protocol 1: stop the other"):
        await transport.tick("g2")
    assert client.zrange(POOL.workers, 0, -1) == ["w1"]
    assert client.zrange(POOL.gateways, 0, -1) == ["g1"]

    async def has_come() -> bool:
        try:
            await transport.enlist(new_worker("w2"))
        except ConfigError:
            return False
        return True

    await real.until(has_come, "the others' leases to lapse")
    assert client.hget(POOL.clock, "protocol") == "1"
    await transport.tick("g2")


async def test_a_pool_without_a_number_takes_ours(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    client.hdel(POOL.clock, "protocol")  # of the release before numbers, or a Redis that has forgotten it
    await transport.tick("g1")
    assert client.hget(POOL.clock, "protocol") == "1"
    await transport.enlist(new_worker("w2"))


async def test_workers_use_the_time_that_gateways_allow_for_their_absence(
    real: RedisStore, client: redis.Redis
) -> None:
    worker = await real.transport()
    gateway = RedisTransport(real.url, resume_window_s=12.5)
    await gateway.tick("g1")
    assert client.hget(POOL.clock, "away") == "12500"
    await gateway.close()
    await worker.enlist(new_worker("w1"))
    on = (POOL.workers, POOL.about, POOL.clock, POOL.worker("w1"), POOL.gateways)
    about = encode_json(new_worker("w1"))
    for ago_ms, away in ((12_000, []), (13_000, ["g1"])):
        seconds, micros = client.time()
        client.zadd(POOL.gateways, {"g1": seconds * 1000 + micros // 1000 - ago_ms})
        client.hset(POOL.clock, "amnesty", 0)
        renewal: Any = client.eval(Script("renew").source.decode(), len(on), *on, "w1", about)
        assert renewal[3] == away


def test_the_scripts_agree_on_their_numbers() -> None:
    """Each stands in the script that goes by it, so that no caller need know it."""
    sources = {name: Script(name).source.decode() for name in ("enlist", "renew", "tick", "claim")}
    for name in ("enlist", "renew", "tick"):
        ((names, values),) = re.findall(r"^local ([A-Z_, ]+) = ([\d', ]+)$", sources[name], re.M)
        numbers = dict(zip(names.split(", "), values.split(", "), strict=True))
        assert float(numbers["LEASE_MS"]) / 1000 == LEASE_S
        assert float(numbers["GAP_MS"]) / 1000 == memory._PULSE_GAP_S
        assert numbers.get("PROTOCOL", "'1'") == "'1'"
    assert f"local MAX_DEATHS_IN_A_ROW, MAX_DEATHS = {MAX_DEATHS_IN_A_ROW}, {MAX_DEATHS}\n" in sources["claim"]


def test_the_scripts_agree_on_how_long_a_key_of_a_pool_is_kept() -> None:
    """A script is one file for every language, so each has the number in it: `keys.POOL_TTL_MS`."""
    expiries = {
        script.name: set(map(int, re.findall(r"'PEXPIRE', KEYS\[\w+\], (\d{4,})\)", script.source.decode())))
        for script in SCRIPTS
    }
    assert {name: found for name, found in expiries.items() if found - {keys.POOL_TTL_MS}} == {}
    assert sum(map(bool, expiries.values())) == 9


# ── requests that this release cannot run ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("envelope", ['{"v":2,"job":%s}', '{ "v" : 2, "job": {"id": 1}}', '{"job":%s,"v":2}'])
async def test_a_request_of_a_newer_version_goes_to_a_newer_worker(
    real: RedisStore, client: redis.Redis, envelope: str
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    newer, known, behind, later = (new_job() for _ in range(4))
    for job in (newer, known, behind):
        await transport.submit(job, "g1", 0)
    text = json.dumps({"id": newer.id, "model": "m"})
    client.hset(keys.job(newer.id), "job", envelope % text if "%s" in envelope else envelope)
    held = await transport.take("w1", 2)
    assert [claim.job.id for claim in await transport.claim("w1", held)] == [known.id]
    assert client.lrange(POOL.worker("w1"), 0, -1) == [known.id]
    assert await transport.waiting() == [behind.id, newer.id]
    state: Any = client.hmget(keys.job(newer.id), "state", "deaths")
    assert state == ["queued", None]
    comes_first = envelope.index('"v"') < envelope.index('"job"')
    assert bool(client.exists(keys.log(newer.id))) is not comes_first, "nothing is begun where it is seen in time"
    # For a moment this worker takes nothing, then it goes on; what came meanwhile is in front.
    await transport.submit(later, "g1", 0, front=True)
    assert await transport.take("w1", 8) == [known.id]
    assert await transport.wait("w1", 0.01) is None
    await real.until(lambda: _takes(transport, later.id), "the worker to go on")
    # A worker of that release takes it.
    source = Script("claim").source.decode()
    assert "JOB_VERSION = 1 " in source
    client.lrem(POOL.worker("w1"), 0, newer.id)
    on = (keys.job(newer.id), keys.log(newer.id))
    reply: Any = client.eval(source.replace("JOB_VERSION = 1 ", "JOB_VERSION = 2 "), len(on), *on, newer.id, "w2", "")
    assert reply[0] == "claimed"


async def _takes(transport: Transport, job_id: str) -> bool:
    return job_id in await transport.take("w1", 1)


async def test_a_newer_request_that_is_late_or_unwanted_is_ended_by_any_worker(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    late, unwanted = new_job(), new_job()
    for job in (late, unwanted):
        await transport.submit(job, "g1", 0)
        client.hset(keys.job(job.id), "job", '{"v":2,"job":{}}')
    client.hset(keys.job(late.id), "deadline", 1)
    client.hset(keys.job(unwanted.id), "cancel", "client")
    assert await transport.claim("w1", await transport.take("w1", 2)) == []
    assert await transport.waiting() == []
    assert client.hget(keys.job(late.id), "state") == client.hget(keys.job(unwanted.id), "state") == "done"


async def test_a_request_whose_json_is_anothers_ends_at_once(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, _):
        other = new_job()
        await transport.submit(other, "g1", 0)
        client.hset(keys.job(other.id), "job", encode_job(reader.stream.job))
        assert await transport.claim("w1", [other.id]) == []
        entries: Any = client.xrange(keys.log(other.id))
        frames = [json.loads(entry["f"]) for _, entry in entries]
        assert [frame["kind"] for frame in frames] == ["started", "failed"]
        assert frames[1]["code"] == "internal_error"
        assert other.id not in client.lrange(POOL.worker("w1"), 0, -1)
