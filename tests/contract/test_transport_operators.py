"""An operator's verbs: who holds what, who is dead, what a doctor sees, and which servers are refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from penstock.errors import BackendError, ConfigError, StoreUnavailable
from penstock.event import Done, Failed, Tokens, Usage
from penstock.fleet import Engines
from penstock.transports import Transport
from penstock.transports.base import MAX_DEATHS_IN_A_ROW, DeadJob, Finding, JobSummary
from penstock.transports.redis import RedisTransport, keys, rights
from penstock.transports.redis.driver.endpoint import parse
from penstock.transports.redis.keys import PoolKeys
from tests.contract.conftest import REAL
from tests.support.servers import Server, free_port, redis_client, start_server
from tests.support.stores import SHORT_LEASE_S, RedisStore, Store, new_job, new_worker, run_one
from tests.support.waiting import wait_until

LUA = Path(rights.__file__).parent / "lua"


async def test_an_overview_has_the_jobs_of_each_worker(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    await transport.tick("g1")
    held, waiting = new_job(), new_job()
    await transport.submit(held, "g1", 0)
    await run_one(transport, "w1", held.id)
    await transport.submit(waiting, "g1", 0)
    seen = await transport.overview()
    assert (seen.depth, seen.oldest, seen.num_dead) == (1, waiting.id, 0)
    assert set(seen.gateways) == {"g1"}
    (worker,) = seen.workers
    assert (worker.worker, worker.held) == ("w1", (held.id,))
    assert worker.lease_s > 0
    assert worker.info == new_worker("w1")


async def test_an_overview_has_dead_workers_and_not_those_that_have_left(store: Store) -> None:
    doomed = await store.transport(SHORT_LEASE_S)
    for name in ("w1", "w2"):
        await doomed.enlist(new_worker(name))
    await doomed.leave("w2")
    job = new_job()
    await doomed.submit(job, "g1", 0)
    await run_one(doomed, "w1", job.id)

    async def is_dead() -> bool:
        (worker,) = (await doomed.overview()).workers
        assert (worker.worker, worker.held) == ("w1", (job.id,))
        return worker.lease_s < 0

    await store.until(is_dead, "the lease of w1 to lapse")
    assert (await doomed.overview()).num_taken == 1


async def _summaries(transport: Transport, *job_ids: str) -> list[JobSummary]:
    found = [one for one in await transport.read_summary(job_ids) if one is not None]
    assert len(found) == len(job_ids)
    return found


async def test_a_summary_is_a_read_without_large_fields(store: Store) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job(caller="me", user="ann", metadata={"case": "ACME 4711"}, prompt="x" * 10_000)
    assert await transport.read_summary([job.id]) == [None]
    await transport.submit(job, "g1", 0)
    (queued,) = await _summaries(transport, job.id)
    assert (queued.id, queued.model, queued.caller, queued.user, queued.metadata) == (
        *(job.id, "m", "me", "ann"),
        {"case": "ACME 4711"},
    )
    assert (queued.state, queued.num_claims, queued.num_tokens, queued.end) == ("queued", 0, 0, None)
    claim = await run_one(transport, "w1", job.id)
    await transport.emit("w1", [Tokens(job.id, claim.attempt, 0, tokens=("a", "b"))])
    (running,) = await _summaries(transport, job.id)
    assert (running.state, running.num_claims, running.num_tokens, running.worker) == ("running", 1, 2, "w1")
    usage = Usage(3, 1002)
    many = tuple(f'"finish_reason":"{number}],' for number in range(1000))
    await transport.emit("w1", [Done(job.id, claim.attempt, 2, tokens=many, finish_reason="length", usage=usage)])
    assert await transport.read_summary(["g1.none"]) == [None]
    record = await transport.read(job.id)
    assert record is not None
    (ended,) = await _summaries(transport, job.id)
    assert (ended.state, ended.created_at, ended.ended_at) == ("done", record.created_at, record.ended_at)
    assert ended.end == Done(job.id, claim.attempt, 2, finish_reason="length", usage=usage)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_summary_has_how_it_failed(store: Store, size: int) -> None:
    transport = await store.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    end = Failed.of(job.id, claim.attempt, 0, BackendError("It fell."), tokens=("x" * size,))
    await transport.emit("w1", [end])
    (seen,) = await _summaries(transport, job.id)
    assert seen.end == msgspec.structs.replace(end, tokens=())


async def test_the_summary_of_a_long_frame_of_another_order(real: RedisStore, client: redis.Redis) -> None:
    """A worker in another language may write the fields of a frame in any order."""
    transport = await real.transport()
    await transport.enlist(new_worker("w1"))
    job = new_job()
    await transport.submit(job, "g1", 0)
    claim = await run_one(transport, "w1", job.id)
    frame = {"finish_reason": "stop", "tokens": ["x" * 10_000], "seq": 0, "attempt": claim.attempt}
    frame |= {"id": job.id, "kind": "done", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    lua = (LUA / "finish.lua").read_text()
    assert client.eval(lua, 2, keys.job(job.id), keys.log(job.id), job.id, claim.attempt, 0, json.dumps(frame)) == "ok"
    (seen,) = await _summaries(transport, job.id)
    assert seen.end == Done(job.id, claim.attempt, 0, finish_reason="stop", usage=Usage(1, 1))


async def test_one_broken_request_does_not_take_a_list_with_it(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    jobs = [new_job() for _ in range(4)]
    for job in jobs:
        await transport.submit(job, "g1", 0)
    client.hset(keys.job(jobs[0].id), "created", "nan")
    client.hset(keys.job(jobs[1].id), "about", "{")
    client.delete(keys.job(jobs[2].id))
    client.set(keys.job(jobs[2].id), "a string", px=60_000)
    seen = await transport.read_summary([job.id for job in jobs])
    assert [one and one.id for one in seen] == [None, None, None, jobs[3].id]


async def test_a_large_reply_has_a_connection_of_its_own(real: RedisStore, client: redis.Redis) -> None:
    """A whole job, a list, the queue: none of them stands in the way of the commands that requests wait for."""
    transport = await real.transport()
    job = new_job(prompt="x" * 500_000, caller="me")
    await transport.submit(job, "g1", 0)

    def sent() -> dict[str, int]:
        return {one["name"]: int(one["tot-net-out"]) for one in client.client_list() if "tot-net-out" in one}

    def last() -> str:
        """The last command on that connection."""
        return next((one["cmd"] for one in client.client_list() if one["name"] == "penstock-bulk"), "none yet")

    assert await transport.read(job.id, job=job)
    assert last() == "none yet"
    assert await transport.requests_of("me", 10) == [job.id]
    assert last() == "lrange"
    before = client.info("stats")["total_net_output_bytes"]
    assert (await transport.read_summary([job.id]))[0] is not None
    assert client.info("stats")["total_net_output_bytes"] - before < 10_000
    assert last() == "evalsha"
    assert await transport.waiting() == [job.id]
    assert last() == "lrange"
    assert await transport.read(job.id)
    assert last() == "xrange"
    if client.client_list()[0].get("tot-net-out") is not None:
        assert sent()["penstock"] < 100_000 < sent()["penstock-bulk"]
    assert {"penstock", "penstock-bulk"} <= {one["name"] for one in client.client_list()}


async def _poison(store: Store) -> str:
    """A job that ended as many workers as it takes; its id."""
    job = new_job(prompt="a secret")
    doomed = await store.transport(SHORT_LEASE_S)
    await doomed.submit(job, "g1", 0)
    for number in range(MAX_DEATHS_IN_A_ROW):
        worker = f"w{number}.{job.id}"
        await doomed.enlist(new_worker(worker))
        await run_one(doomed, worker, job.id)

        async def reap(worker: str = worker) -> bool:
            return await doomed.reap(worker) > 0

        await store.until(reap, f"{worker} to be reaped")
    last = await store.transport()
    await last.enlist(new_worker(f"w9.{job.id}"))
    await last.take(f"w9.{job.id}", 1)
    assert await last.claim(f"w9.{job.id}", [job.id]) == []
    return job.id


async def test_the_dead_are_listed_until_they_are_removed(store: Store) -> None:
    transport = await store.transport()
    assert await transport.dead() == []
    first, second = await _poison(store), await _poison(store)
    dead = [
        DeadJob(id=job_id, model="m", deaths=MAX_DEATHS_IN_A_ROW, error="request_poisoned")
        for job_id in (second, first)
    ]
    assert await transport.dead() == dead  # newest first, and no prompt
    assert (await transport.overview()).num_dead == 2
    assert await transport.remove_dead(first)
    assert not await transport.remove_dead(first)
    assert await transport.dead() == dead[:1]


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


async def test_a_doctor_looks(store: Store) -> None:
    transport = await store.transport()
    findings = await transport.inspect()
    assert findings
    assert [finding for finding in findings if finding.level == "error"] == []
    assert all(finding.advice for finding in findings if finding.level != "ok")


async def test_a_doctor_looks_at_the_server(real: RedisStore) -> None:
    transport = await real.transport()
    findings = _by_name(await transport.inspect())
    sound = ("round trip", "version", "memory policy", "role", "output buffers", "clock", "rights", "network")
    assert {findings[name].level for name in (*sound, "oldest waiting", "dead requests")} == {"ok"}
    assert findings["persistence"].level == "warning"  # the tests' servers keep nothing
    assert findings["workers"].value == "none alive"

    await transport.enlist(new_worker("w1"))
    await transport.submit(new_job(), "g1", 0)
    findings = _by_name(await transport.inspect())
    assert (findings["workers"].level, findings["workers"].value) == ("ok", "1 alive, serving m")
    assert re.fullmatch(r"0\.\d s, 1 in the queue", findings["oldest waiting"].value)


async def test_a_doctor_looks_at_the_engines_and_the_dead(real: RedisStore, client: redis.Redis) -> None:
    transport = await real.transport()
    assert "engines" not in _by_name(await transport.inspect())
    info = new_worker("w1")
    for num_up, level in ((2, "ok"), (1, "warning"), (0, "error")):
        await transport.enlist(msgspec.structs.replace(info, engines={"m": Engines(num_up, 2)}))
        found = _by_name(await transport.inspect())["engines"]
        assert (found.level, found.value) == (level, f"m {num_up} of 2 up")
    entry = {"id": "g1.x", "model": "m", "deaths": 0, "error": "unreadable", "reason": "its JSON is broken"}
    client.rpush("{inference:queue}:dead", json.dumps(entry))
    client.expire("{inference:queue}:dead", 60)
    found = _by_name(await transport.inspect())["dead requests"]
    assert (found.level, found.value) == ("warning", "1, of which 1 cannot be read")
    assert "dead drop" in found.advice


async def test_a_doctor_tells_of_a_server_that_is_not_there() -> None:
    transport = RedisTransport(f"redis://:hush@127.0.0.1:{free_port()}")
    (finding,) = await transport.inspect()
    await transport.close()
    assert (finding.name, finding.level) == ("round trip", "error")
    assert "127.0.0.1" in finding.value
    assert "hush" not in f"{finding}"


def test_the_rights_that_are_asked_for_are_those_that_scripts_need() -> None:
    asked = {words[0] for words in rights.needed(PoolKeys())}
    called = {name for path in LUA.glob("*.lua") for name in re.findall(r"redis\.call\('(\w+)'", path.read_text())}
    called |= {"RPUSH"}  # chosen by an expression in enqueue.lua
    assert len(called) > 25
    assert called - asked == set()


@pytest.fixture(params=REAL)
def own(request: pytest.FixtureRequest) -> Iterator[tuple[Server, redis.Redis]]:
    """A server to misconfigure, with a client that may do anything."""
    server = start_server(request.param)
    with redis_client(server.url, decode_responses=True) as client:
        yield server, client
    server.stop()


def _let_in(client: redis.Redis, user: str, *rules: str) -> None:
    client.execute_command("ACL", "SETUSER", user, "on", ">pw", *rules)  # type: ignore[no-untyped-call]


async def test_a_user_without_rights_gets_the_list_of_missing_ones(own: tuple[Server, redis.Redis]) -> None:
    server, client = own
    everything = ["~inference:*", "~{inference:*", "&*", "+@all"]
    _let_in(client, "app", *everything, "-xadd", "-blmove")
    _let_in(client, "fenced", "~inference:*", "~{inference:*", "&inference:*", "+@all")
    _let_in(client, "keyless", "~inference:*", "&*", "+@all")
    _let_in(client, "whole", *everything)
    seen = {}
    for user in ("app", "fenced", "keyless", "whole"):
        transport = RedisTransport(server.url.replace("//", f"//{user}:pw@"))
        seen[user] = _by_name(await transport.inspect())["rights"]
        await transport.close()
    assert (seen["app"].level, seen["app"].value) == ("error", "app may not BLMOVE, XADD")
    assert "+blmove +xadd" in seen["app"].advice
    assert seen["fenced"].value == "fenced may not PSUBSCRIBE"  # a pattern is allowed only as it is spelt
    assert seen["keyless"].level == "error"  # the keys in braces are not its own
    assert "HMGET" in seen["keyless"].value
    assert (seen["whole"].level, seen["whole"].value) == ("ok", "whole may do all that is needed")


async def test_a_value_that_a_managed_server_hides_is_a_warning(own: tuple[Server, redis.Redis]) -> None:
    server, client = own
    client.config_set("maxmemory", "200mb")
    forbidden = ("-config", "-info", "-acl")
    _let_in(client, "app", "~*", "&*", "+@all", *forbidden)
    transport = RedisTransport(server.url.replace("//", "//app:pw@"))
    await transport.check()
    findings = _by_name(await transport.inspect())
    await transport.close()
    hidden = {name for name, finding in findings.items() if finding.value == "hidden"}
    assert hidden == {"version", "role", "memory policy", "persistence", "output buffers", "rights"}
    assert {findings[name].level for name in hidden} == {"warning"}


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_an_evicting_server_is_refused(own: tuple[Server, redis.Redis], policy: str) -> None:
    server, client = own
    transport = RedisTransport(server.url)
    try:
        await transport.check()
        client.config_set("maxmemory-policy", policy)
        await transport.check()  # it has no limit: nothing to evict for
        assert _by_name(await transport.inspect())["memory policy"].level == "warning"
        client.config_set("maxmemory", "200mb")
        with pytest.raises(ConfigError, match=policy) as caught:
            await transport.check()
        assert "noeviction" in caught.value.message
        assert _by_name(await transport.inspect())["memory policy"].level == "error"
        _let_in(client, "app", "~*", "&*", "+@all", "-config")
        hidden = RedisTransport(server.url.replace("//", "//app:pw@"))
        with pytest.raises(ConfigError, match=policy):  # INFO says it as well
            await hidden.check()
        await hidden.close()
        client.config_set("maxmemory-policy", "noeviction")
        await transport.check()
    finally:
        await transport.close()


async def test_a_server_that_is_away_is_not_judged() -> None:
    transport = RedisTransport(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailable):
        await transport.check()
    await transport.close()


async def test_a_server_without_a_password_is_a_warning(
    own: tuple[Server, redis.Redis], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = own
    transport = RedisTransport(server.url)
    with caplog.at_level(logging.WARNING):
        await transport.check()
        assert caplog.text == ""
        monkeypatch.setattr(transport._redis, "deployment", parse("redis://:hush@redis.example.org"))
        await transport.check()
    assert "redis.example.org is reached without TLS" in caplog.text
    assert "hush" not in caplog.text
    await transport.close()


async def test_memory_has_nothing_to_refuse(transport: Transport) -> None:
    await transport.check()


async def test_a_followed_channel_is_received_again_after_a_cut(real: RedisStore, client: redis.Redis) -> None:
    here, there = await real.transport(), await real.transport()
    assert isinstance(there, RedisTransport)
    subscriber = there._redis.subscriber
    jobs = [new_job() for _ in range(3)]
    heard: list[str] = []
    resets: list[list[bool]] = []

    def reset() -> None:
        resets.append([subscriber.has(keys.channel(job.id)) for job in jobs])

    await there.listen("g2", lambda event: heard.append(event.job_id), reset)
    await here.enlist(new_worker("w1"))
    for job in jobs:
        await here.submit(job, "g1", 0)
        await there.follow(job.id)
    await there.unfollow(jobs[2].id)
    client.client_kill_filter(_type="pubsub", skipme=True)
    await wait_until(lambda: resets, "the subscription to be made again")
    assert there.is_listening
    await here.claim("w1", await here.take("w1", 3))
    await wait_until(lambda: len(heard) == 2, "both followed jobs to be heard")
    assert set(heard) == {jobs[0].id, jobs[1].id}
    assert resets == [[True, True, False]]  # one for all, when every channel stands
