"""Workers and producers that others wrote, on the same Redis: what they may write, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from penstock.errors import InternalError
from penstock.event import Done, Failed, Tokens
from penstock.relay import Reader, Relay
from penstock.transports import Transport
from penstock.transports.redis import keys
from tests.contract.stores import RedisStore, new_job, new_worker, run_one
from tests.waiting import wait_until

END = "18446744073709551615"


@asynccontextmanager
async def asked(transport: Transport, worker: str = "w1") -> AsyncIterator[tuple[Relay, Reader, int]]:
    """A request that a client of gateway `g1` reads, claimed by `worker`: its relay, the reader and the attempt."""
    relay = Relay("g1", transport, max_depth=0)
    await transport.listen("g1", relay.deliver, relay.distrust)
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
        glance = await transport.glance(job_id)
        assert glance is not None
        assert [type(event) for event in glance.events] == [Failed]


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


async def test_what_a_newer_worker_may_say_is_understood(real: RedisStore, client: redis.Redis) -> None:
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
    async with asked(transport) as (_, reader, _):
        job_id = reader.stream.job.id
        client.hset(keys.job(job_id), "job", json.dumps({"v": 1, "job": {"id": job_id}}))
        with pytest.raises(InternalError, match="cannot read"):
            await transport.read(job_id)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end", 5.0)
        end: Any = reader.stream.end
        assert end.code == "internal_error"


async def test_rubbish_on_the_channel_alone_harms_nothing(
    real: RedisStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await real.transport()
    async with asked(transport) as (_, reader, attempt):
        job_id = reader.stream.job.id
        for _ in range(50):
            client.publish(keys.channel(job_id), "rubbish")
        head = f'"id":"{job_id}","attempt":{attempt}'
        last = f'{{"kind":"done",{head},"seq":0,"tokens":["a"],"finish_reason":"stop"}}'
        write(client, job_id, f"{attempt}-{END}", last, is_end=True)
        await wait_until(lambda: reader.stream.end is not None, "the stream to end")
        assert isinstance(reader.stream.end, Done)
        assert sum("cannot be read" in line for line in caplog.messages) == 1
