"""The request as an object, on Redis: followed from another gateway, bound to a key, listed, found in the queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hiredis import ReplyError
from msgspec import Struct
from msgspec.structs import replace

from penstock.errors import InternalError, StoreUnavailable
from penstock.event import Done, Failed, Terminal
from penstock.job import Job
from penstock.transports.base import Bound, State, Summary, Transport
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import command
from penstock.transports.redis.driver.subscriber import OnMessage
from penstock.transports.redis.records import missing_end
from penstock.transports.redis.refusals import Refused, is_wrong_type, shown
from penstock.wire import WireError, decode_event, decode_json, encode_json

log = logging.getLogger(__name__)


class About(Struct, frozen=True, omit_defaults=True):
    """What lists show of a job besides its state: a small field of its own, so that no list reads a whole job."""

    caller: str = ""
    user: str = ""
    metadata: dict[str, str] = {}


def about(job: Job) -> bytes:
    return encode_json(About(job.caller, job.user, job.metadata))


class ObjectSide(Transport):
    """The verbs of `RedisTransport` for requests that are looked at, taken up and asked for again."""

    _redis: RedisClient
    _hear: OnMessage | None = None

    async def follow(self, job_id: str) -> None:
        """Without an `on_reset` of its own: this channel is confirmed again before the gateway's pattern is."""
        if self._hear is None:  # a process that has just been started, and is asked before it is ready
            raise StoreUnavailable("This gateway does not listen yet.", retry_after_s=1.0)
        topic = keys.channel(job_id)
        try:
            await self._redis.subscriber.subscribe(topic, self._hear)
        except BaseException:
            self._redis.subscriber.unsubscribe(topic)
            raise

    async def unfollow(self, job_id: str) -> None:
        self._redis.subscriber.unsubscribe(keys.channel(job_id))

    async def states(self, job_ids: Sequence[str]) -> dict[str, State]:
        names = [keys.job(job_id) for job_id in job_ids]
        found = await self._redis.run_each("states", [(name, command("HGET", name, "state")) for name in names])
        for reply in found:
            if isinstance(reply, ReplyError) and not is_wrong_type(reply):
                raise Refused(f"Redis refused to tell states: {reply}")
        known: dict[str, Any] = {
            job_id: state.decode() for job_id, state in zip(job_ids, found, strict=True) if isinstance(state, bytes)
        }
        return known

    async def knows(self, gateway_id: str) -> bool:
        gateways = self._redis.pool.gateways
        return await self._redis.ask("knows", gateways, command("ZSCORE", gateways, gateway_id)) is not None

    async def bind_key(self, job: Job, keep_s: float, instead_of: str = "") -> Bound | None:
        key, _, body_hash = job.once.partition(" ")
        name = keys.once(job.caller, key)
        bind = scripts.bind_key(name, job.id, body_hash, max(1, round(keep_s * 1000)), instead_of)
        bound = await self._redis.ask("bind_key", name, bind)
        if not bound:
            return None
        first_id, first_hash, age_ms = bound
        return Bound(job_id=shown(first_id), body_hash=shown(first_hash), age_s=age_ms / 1000)

    async def unbind_key(self, job: Job) -> None:
        name = keys.once(job.caller, job.once.partition(" ")[0])
        await self._redis.ask("unbind_key", name, scripts.unbind_key(name, job.id))

    async def read_summary(self, job_ids: Sequence[str]) -> list[Summary | None]:
        looks = [(keys.job(job_id), scripts.read_summary(job_id)) for job_id in job_ids]
        replies = await self._redis.run_each("read_summary", looks, is_bulk=True)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise Refused(f"Redis refused to list requests: {reply}")
        return [_summary(job_id, reply) if reply else None for job_id, reply in zip(job_ids, replies, strict=True)]

    async def waiting(self, limit: int = 10_000) -> list[str]:
        if limit < 1:
            return []
        queue = self._redis.pool.queue
        (ids,) = await self._redis.run_bulk("waiting", queue, command("LRANGE", queue, 0, limit - 1, on=(queue,)))
        return [shown(job_id) for job_id in ids]


def _summary(job_id: str, reply: list[Any]) -> Summary | None:
    try:
        return _summary_of(job_id, reply)
    except ValueError as error:  # one broken request must not fail the list
        log.warning("request %s cannot be read: %s", job_id, error)
        return None


def _summary_of(job_id: str, reply: list[Any]) -> Summary:
    *words, end = reply
    model, about, state, worker, claims, deaths, created, deadline, started, first, ended, now, num_tokens = words
    known_state: Any = state.decode()
    known = decode_json(about or b"{}", About)
    return Summary(
        id=job_id,
        model=(model or b"").decode(),
        caller=known.caller,
        user=known.user,
        metadata=known.metadata,
        state=known_state,
        worker=(worker or b"").decode(),
        num_claims=int(claims or 0),
        num_deaths=int(deaths or 0),
        created_at=int(created or 0) / 1000,
        deadline_at=int(deadline or 0) / 1000,
        started_at=int(started or 0) / 1000,
        first_token_at=int(first or 0) / 1000,
        ended_at=int(ended or 0) / 1000,
        now=int(now) / 1000,
        num_tokens=int(num_tokens),
        end=_end(job_id, end) if known_state == "done" else None,
    )


def _end(job_id: str, frame: bytes) -> Terminal:
    """The terminal frame without its tokens; an error in place of one that cannot be read."""
    try:
        end = decode_event(frame)
    except WireError:
        return Failed.of(job_id, 0, 0, InternalError("A part of this request's log cannot be read."))
    return replace(end, tokens=()) if isinstance(end, Done | Failed) else missing_end(job_id, end.attempt, end.seq)
