"""Every command of every script refused in its turn, and given back: each request ends right, and every key with it.

A right that is taken away stops a script in its middle. `Site.do` calls each verb of a story once without the right
and, if that was refused, again with it, as the loops of gateways and workers do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest
import redis

from penstock.errors import QueueFull, StoreUnavailable
from penstock.event import Done, Failed, fold
from penstock.job import Claim, Job, Message
from penstock.transports.base import Outcome, RateLimit
from penstock.transports.redis import RedisTransport, rights, scripts
from penstock.transports.redis.driver.command import Command
from penstock.transports.redis.keys import PoolKeys
from tests.support.stores import RedisStore, new_job, new_worker, tokens

T = TypeVar("T")

USER, PASSWORD = "limited", "pw"
NOT_OF_A_KEY = {"PING", "CLIENT", "SCRIPT", "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "EVAL"}
CHOSEN_BY_A_SCRIPT = {"LPUSH", "RPUSH"}
IN_SCRIPTS = CHOSEN_BY_A_SCRIPT | {
    name for script in scripts.SCRIPTS for name in re.findall(r"redis\.p?call\('([A-Z]+)'", script.source.decode())
}
SENT = {words[0] for words in rights.needed(PoolKeys())} - NOT_OF_A_KEY


class Site:
    """A pool as a limited user sees it. `command`: what that user may not do at the first try of each verb."""

    def __init__(self, transport: RedisTransport, admin: redis.Redis, command: str | None) -> None:
        self.transport, self.admin, self.command = transport, admin, command

    def allow(self, rule: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", USER, rule)  # type: ignore[no-untyped-call]

    async def do(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.command is not None:
            try:
                return await self.half(call)
            except StoreUnavailable:
                pass  # what was begun must now be completed
        return await call()

    async def half(self, call: Callable[[], Awaitable[T]]) -> T:
        """Only the first try."""
        self.allow(f"-{self.command}")
        try:
            return await call()
        finally:
            self.allow(f"+{self.command}")

    async def submit(self, **fields: Any) -> Job:
        job = new_job(**fields)
        await self.do(lambda: self.transport.submit(job, "g1", 50))
        return job

    async def take(self, worker: str, job: Job) -> None:
        assert job.id in await self.do(lambda: self.transport.take(worker, 1))

    async def claims(self, worker: str, job: Job) -> Sequence[Claim]:
        return await self.do(lambda: self.transport.claim(worker, [job.id]))

    async def run(self, worker: str, job: Job) -> Claim:
        await self.take(worker, job)
        (claim,) = await self.claims(worker, job)
        return claim

    async def finish(self, worker: str, claim: Claim, seq: int) -> None:
        end = Done(claim.job.id, claim.attempt, seq, tokens=("z",), finish_reason="stop")
        assert await self.do(lambda: self.transport.emit(worker, [end])) == set()

    async def ended(self, job: Job, *texts: str, code: str = "") -> None:
        """It has ended once, with these tokens; no list holds it."""
        record = await self.transport.read(job.id)
        assert record is not None
        assert record.state == "done"
        ends = [event for event in record.events if isinstance(event, Done | Failed)]
        assert len(ends) == 1
        assert record.events[-1] is ends[0]
        said = fold(record.events)
        assert said.tokens == texts
        assert (ends[0].code if isinstance(ends[0], Failed) else "") == code
        for worker in ("w1", "w2"):  # whatever of it is left in a list is claimed, and dropped then
            for _ in range(3):
                await self.transport.claim(worker, await self.transport.take(worker, 10))
            assert await self.transport.take(worker, 0) == []
        assert await self.transport.waiting() == []


Story = Callable[[Site], Awaitable[None]]


async def answered(site: Site) -> None:
    transport = site.transport
    await site.do(lambda: transport.charge("k", RateLimit(60, 10)))
    asked_once = new_job(caller="me", once="key hash")
    assert await site.do(lambda: transport.bind_key(asked_once, 60.0)) is None
    await site.do(lambda: transport.unbind_key(asked_once))
    job = await site.submit(caller="me")
    await site.do(lambda: transport.wait("w1", 0.05))
    claim = await site.run("w1", job)
    await site.do(lambda: transport.emit("w1", [tokens(claim, 0, "a")]))
    await site.do(lambda: transport.emit("w1", [tokens(claim, 1, "b"), tokens(claim, 2, "c")]))
    await site.do(lambda: transport.renew(new_worker("w1"), [job.id]))
    await site.finish("w1", claim, 3)
    await site.do(lambda: transport.read(job.id))
    await site.do(lambda: transport.requests_of("me", 5))
    await site.do(lambda: transport.read_summary([job.id]))
    await site.ended(job, "a", "b", "c", "z")


async def weighed(site: Site) -> None:
    """What is not awaited, too: whatever of it is refused, the request and its caller's books stay whole."""
    transport = site.transport
    messages = tuple(Message("user", text) for text in "abc")
    job = await site.submit(caller="me", prompt=None, messages=messages, repeated=(0, 2))
    await site.finish("w1", await site.run("w1", job), 0)

    async def end_it() -> None:
        transport.weigh(job, 128, 60.0)
        transport.prolong(job, 128, 120.0)
        await transport.waiting()

    await site.do(end_it)
    await end_it()
    await site.ended(job, "z")
    assert await transport.requests_of("me", 5) in ([job.id], [])  # that it is not listed does not refuse it


async def deleted(site: Site) -> None:
    job = await site.submit(caller="me")
    await site.finish("w1", await site.run("w1", job), 0)
    assert await site.do(lambda: site.transport.delete(job))
    assert await site.transport.read(job.id) is None
    assert await site.transport.states([job.id]) == {job.id: "done"}


async def cancelled_while_it_waits(site: Site) -> None:
    job = await site.submit()
    assert await site.do(lambda: site.transport.cancel(job.id, "client", "g1")) in ("ended", "done")
    await site.do(lambda: site.transport.cancel(job.id, "client", "g1"))
    await site.ended(job)


async def cancelled_while_it_runs(site: Site) -> None:
    job = await site.submit()
    claim = await site.run("w1", job)
    assert await site.do(lambda: site.transport.cancel(job.id, "client", "g1")) == "marked"
    renewal = await site.do(lambda: site.transport.renew(new_worker("w1"), [job.id]))
    assert renewal.cancelled in ({job.id: "client"}, {})  # nothing is known where its look was refused
    end = Done(job.id, claim.attempt, 0, finish_reason="cancelled")
    assert await site.do(lambda: site.transport.emit("w1", [end])) == set()
    await site.ended(job)


async def handed_back(site: Site) -> None:
    job = await site.submit()
    claim = await site.run("w1", job)
    await site.do(lambda: site.transport.hand_back("w1", [claim]))
    assert set(await site.transport.waiting()) == {job.id}  # a second copy does no harm
    await site.finish("w2", await site.run("w2", job), 0)
    await site.ended(job, "z")


async def left_by_its_worker(site: Site) -> None:
    await site.do(lambda: site.transport.enlist(new_worker("w3")))
    job = await site.submit()
    claim = await site.run("w3", job)
    await site.do(lambda: site.transport.emit("w3", [tokens(claim, 0, "a")]))
    await site.do(lambda: site.transport.leave("w3"))
    await site.do(lambda: site.transport.reap("w3"))
    assert set(await site.transport.waiting()) == {job.id}
    await site.finish("w2", await site.run("w2", job), 1)
    await site.ended(job, "a", "z")


async def left_in_the_middle_of_its_end(site: Site) -> None:
    """The worker that was refused never comes back: the next claim completes the end, or runs the job again."""
    await site.do(lambda: site.transport.enlist(new_worker("w3")))
    job = await site.submit()
    claim = await site.run("w3", job)
    end = Done(job.id, claim.attempt, 0, tokens=("z",), finish_reason="stop")
    if site.command is not None:
        try:
            await site.half(lambda: site.transport.emit("w3", [end]))
        except StoreUnavailable:
            pass  # it dies of something else now
    await site.transport.leave("w3")
    await site.transport.take("w2", 1)
    for again in await site.claims("w2", job):
        await site.finish("w2", again, 0)
    record = await site.transport.read(job.id)
    assert record is not None
    await site.ended(job, *(("z",) if record.events else ()))


async def claimed_by_halves(site: Site) -> None:
    """The first worker's claim is interrupted, and another worker gets the job."""
    await site.do(lambda: site.transport.enlist(new_worker("w3")))
    job = await site.submit()
    await site.take("w3", job)
    if site.command is not None:
        try:
            await site.half(lambda: site.transport.claim("w3", [job.id]))
        except StoreUnavailable:
            pass
    await site.transport.leave("w3")
    await site.finish("w2", await site.run("w2", job), 0)
    await site.ended(job, "z")


async def restored(site: Site) -> None:
    job = await site.submit()
    claim = await site.run("w1", job)
    await site.do(lambda: site.transport.emit("w1", [tokens(claim, 0, "a")]))
    assert await site.do(lambda: site.transport.restore(job, "g1", ["a", "b"], claim.attempt))
    again = await site.run("w2", job)
    assert again.tokens == ("a", "b")
    await site.finish("w2", again, 2)
    await site.ended(job, "a", "b", "z")


async def restored_from_nothing(site: Site) -> None:
    job = new_job()
    assert await site.do(lambda: site.transport.restore(job, "g1", ["a"], 7))
    await site.finish("w2", await site.run("w2", job), 1)
    await site.ended(job, "a", "z")


async def run_again(site: Site) -> None:
    job = await site.submit(stream=False)
    claim = await site.run("w1", job)
    await site.do(lambda: site.transport.emit("w1", [tokens(claim, 0, "a")]))
    await site.do(lambda: site.transport.hand_back("w1", [claim]))
    claim = await site.run("w2", job)
    (again,) = await site.do(lambda: site.transport.rerun("w2", [claim]))
    assert again.tokens == ()
    await site.finish("w2", again, 0)
    await site.ended(job, "z")


async def ended_and_lost(site: Site) -> None:
    job = await site.submit()
    claim = await site.run("w1", job)
    end = Done(job.id, claim.attempt, 1, finish_reason="stop")
    outcome = Outcome(job=job, attempt=claim.attempt, tokens=("a",), end=end, keep_s=60.0, created_ago_s=1.0)
    assert await site.do(lambda: site.transport.restore_end(outcome, "g1")) or site.command == "LREM"
    site.admin.delete(f"{{inference:response:{job.id}}}:job")
    assert await site.do(lambda: site.transport.restore_end(outcome, "g1")) or site.command == "LREM"
    assert await site.do(lambda: site.transport.states([job.id])) == {job.id: "done"}
    await site.ended(job, "a")


async def poisoned(site: Site) -> None:
    job = await site.submit()
    await site.run("w1", job)
    name = f"{{inference:response:{job.id}}}:job"
    site.admin.hset(name, mapping={"worker": "w9", "deaths": 2, "all_deaths": 4})
    far = int(time.time() * 1000) + 60_000  # others have a pulse, so w9 is dead and not only forgotten
    site.admin.hset("{inference:queue}:clock", mapping={"pulse": far, "amnesty": 0})
    assert await site.claims("w1", job) == []
    assert [dead.id for dead in await site.do(site.transport.dead)] == [job.id]
    assert await site.do(lambda: site.transport.remove_dead(job.id)) or site.command == "LREM"
    await site.ended(job, code="request_poisoned")


async def unreadable(site: Site) -> None:
    job = await site.submit()
    site.admin.hset(f"{{inference:response:{job.id}}}:job", "attempt", "nan")
    await site.take("w1", job)
    assert await site.claims("w1", job) == []
    (dead,) = await site.do(site.transport.dead)
    assert (dead.id, dead.error) == (job.id, "unreadable")
    await site.transport.remove_dead(job.id)
    await site.ended(job, code="internal_error")


async def refused_for_the_queue(site: Site) -> None:
    first, second = await site.submit(), new_job()
    with pytest.raises(QueueFull):
        await site.do(lambda: site.transport.submit(second, "g1", 1))
    assert await site.transport.read(second.id) is None
    await site.finish("w1", await site.run("w1", first), 0)
    await site.ended(first, "z")


async def adopted(site: Site) -> None:
    job = await site.submit()
    assert await site.do(lambda: site.transport.adopt(job.id, "g2"))
    await site.do(lambda: site.transport.mark_read(job.id))
    assert await site.do(lambda: site.transport.cancel(job.id, "client", "g2")) == "owned"
    await site.do(lambda: site.transport.cancel(job.id, "client", "g1"))
    await site.transport.cancel(job.id, "operator")
    await site.transport.take("w1", 1)
    await site.claims("w1", job)
    await site.ended(job)


async def late(site: Site) -> None:
    job = await site.submit(timeout_s=600.0)
    site.admin.hset(f"{{inference:response:{job.id}}}:job", "deadline", 1)
    await site.take("w1", job)
    assert await site.claims("w1", job) == []
    await site.ended(job, code="deadline_exceeded")


async def held_twice(site: Site) -> None:
    job = await site.submit()
    claim = await site.run("w1", job)
    site.admin.rpush("inference:queue", job.id)
    await site.take("w2", job)
    assert await site.claims("w2", job) == []
    await site.finish("w1", claim, 0)
    await site.ended(job, "z")


async def stranded(site: Site) -> None:
    job = await site.submit()
    site.admin.delete("inference:queue")
    await site.do(lambda: site.transport.requeue_if_missing(job.id))
    assert await site.transport.waiting() == [job.id]
    await site.finish("w1", await site.run("w1", job), 0)
    await site.ended(job, "z")


async def repaired(site: Site) -> None:
    site.admin.hset("{inference:queue}:clock", "pushed", "many")
    job = await site.submit()
    await site.finish("w1", await site.run("w1", job), 0)
    await site.ended(job, "z")


STORIES: tuple[Story, ...] = (
    weighed,
    *(answered, cancelled_while_it_waits, cancelled_while_it_runs, handed_back, left_by_its_worker),
    *(left_in_the_middle_of_its_end, claimed_by_halves, restored, restored_from_nothing, poisoned, unreadable),
    *(ended_and_lost, deleted, run_again),
    *(refused_for_the_queue, adopted, late, held_twice, stranded, repaired),
)


async def _perform(real: RedisStore, admin: redis.Redis, story: Story, command: str | None) -> None:
    admin.flushall()
    admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")  # type: ignore[no-untyped-call]
    transport = RedisTransport(real.url.replace("//", f"//{USER}:{PASSWORD}@"), lease_s=30.0)
    site = Site(transport, admin, command)
    try:
        for worker in ("w1", "w2"):
            await site.do(lambda worker=worker: transport.enlist(new_worker(worker)))  # type: ignore[misc]
        await site.do(lambda: transport.tick("g1"))
        await story(site)
        await site.do(lambda: transport.tick("g1"))
        for worker in ("w1", "w2"):
            await site.do(lambda worker=worker: transport.renew(new_worker(worker), []))  # type: ignore[misc]
        lasting = [key for key in admin.scan_iter() if admin.pttl(key) == -1]
        assert lasting == [], f"{story.__name__} without {command} leaves keys that never expire"
    finally:
        await transport.close()
        admin.acl_deluser(USER)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", sorted(IN_SCRIPTS | SENT))
async def test_a_refused_command_costs_no_request_its_end(real: RedisStore, client: redis.Redis, command: str) -> None:
    for story in STORIES:
        try:
            await _perform(real, client, story, command)
        except BaseException as error:
            error.add_note(f"in the story {story.__name__!r}, without {command}")
            raise


async def test_the_stories_run_every_script(
    real: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()
    call = scripts.Script.__call__

    def spied(self: scripts.Script, on: Sequence[str | bytes], *args: Any) -> Command:
        called.add(self.name)
        return call(self, on, *args)

    monkeypatch.setattr(scripts.Script, "__call__", spied)
    for story in STORIES:
        await _perform(real, client, story, None)
    assert called == {script.name for script in scripts.SCRIPTS}


async def _limited(real: RedisStore, admin: redis.Redis, *rules: str) -> RedisTransport:
    """As a user who may do everything but what these rules take away."""
    admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", *rules)  # type: ignore[no-untyped-call]
    return RedisTransport(real.url.replace("//", f"//{USER}:{PASSWORD}@"), lease_s=30.0)


async def test_a_request_begins_and_ends_without_publishing(real: RedisStore, client: redis.Redis) -> None:
    """The log is the truth; who hears nothing looks there."""
    transport = await _limited(real, client, "-publish")
    try:
        await transport.enlist(new_worker("w1"))
        run, cancelled, late = new_job(), new_job(), new_job()
        for job in (run, cancelled, late):
            await transport.submit(job, "g1", 0)
        assert await transport.cancel(cancelled.id, "client", "g1") == "ended"
        client.hset(f"{{inference:response:{late.id}}}:job", "deadline", "1")
        (claim,) = await transport.claim("w1", await transport.take("w1", 3))
        end = Done(run.id, claim.attempt, 0, tokens=("z",), finish_reason="stop")
        assert await transport.emit("w1", [end]) == set()
        for job in (run, cancelled, late):
            record = await transport.read(job.id)
            assert record is not None
            assert record.state == "done"
    finally:
        await transport.close()
        client.acl_deluser(USER)


async def test_a_claim_that_is_refused_halfway_is_not_begun_over_and_over(
    real: RedisStore, client: redis.Redis
) -> None:
    transport = await _limited(real, client)
    try:
        await transport.enlist(new_worker("w1"))
        job = new_job()
        await transport.submit(job, "g1", 0)
        held = await transport.take("w1", 1)
        client.execute_command("ACL", "SETUSER", USER, "-hset")  # type: ignore[no-untyped-call]
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await transport.claim("w1", held)
        assert client.xlen(f"{{inference:response:{job.id}}}:log") <= 1
        client.execute_command("ACL", "SETUSER", USER, "+hset")  # type: ignore[no-untyped-call]
        assert [claim.job.id for claim in await transport.claim("w1", held)] == [job.id]
    finally:
        await transport.close()
        client.acl_deluser(USER)


async def test_a_claim_that_is_refused_costs_the_others_nothing(real: RedisStore, client: redis.Redis) -> None:
    refused, allowed = new_job(), new_job()
    transport = await _limited(real, client)
    try:
        await transport.enlist(new_worker("w1"))
        for job in (refused, allowed):
            await transport.submit(job, "g1", 0)
        keys = ("resetkeys", "~inference:*", "~{inference:queue}*", f"~{{inference:response:{allowed.id}}}*")
        client.execute_command("ACL", "SETUSER", USER, *keys)  # type: ignore[no-untyped-call]
        held = await transport.take("w1", 2)
        assert held == [refused.id, allowed.id]
        assert [claim.job.id for claim in await transport.claim("w1", held)] == [allowed.id]
        client.execute_command("ACL", "SETUSER", USER, "~*")  # type: ignore[no-untyped-call]
        assert [claim.job.id for claim in await transport.claim("w1", [refused.id])] == [refused.id]
    finally:
        await transport.close()
        client.acl_deluser(USER)
