"""A gateway's verbs on Redis. `transports/base.py` has the contract of each; the rules are in `docs/protocol.md`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hiredis import ReplyError

from penstock.errors import ConfigError, InternalError, StoreUnavailable
from penstock.event import Event
from penstock.fleet import Pool, WorkerInfo
from penstock.job import Job
from penstock.logs import Seldom
from penstock.rich_token import Token
from penstock.transports.base import (
    NO_SHARE,
    Bound,
    CancelOutcome,
    EndReason,
    GatewayStore,
    Outcome,
    RateLimit,
    Record,
    State,
    Verdict,
)
from penstock.transports.quota import Share
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.base import RedisBase
from penstock.transports.redis.books import CallerBooks
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import command
from penstock.transports.redis.driver.subscriber import OnMessage
from penstock.transports.redis.lifetimes import Lifetimes, ms
from penstock.transports.redis.records import FIELDS, ended, events_of, number, record_of
from penstock.transports.redis.refusals import Refused, is_wrong_type, shown
from penstock.transports.redis.submitter import Submitter, birth_of
from penstock.wire import UNREADABLE, WireError, decode_event, decode_job, decode_json, encode_json, event_decoder

log = logging.getLogger(__name__)

MADE_AGAIN, RESTORED_BEFORE = 2, 3  # replies of restore.lua

_PREFIX = len(keys.RESPONSE)
_EXPIRE_SOONER = b"*4\r\n$7\r\nPEXPIRE\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nLT\r\n"  # once a request: packed by hand


class RedisGatewayStore(RedisBase, GatewayStore):
    """`GatewayStore` over one `RedisClient`."""

    def __init__(self, client: RedisClient, lifetimes: Lifetimes) -> None:
        super().__init__(client, lifetimes)
        self._books = CallerBooks(client, lifetimes)
        self._submitter = Submitter(client, lifetimes, self._books)
        self._listens_to = ""
        self._hear: OnMessage | None = None
        self._unreadable_frames, self._unreadable_workers = Seldom(), Seldom()

    async def close(self) -> None:
        self._books.flush()
        await super().close()

    async def listen(self, gateway_id: str, on_event: Callable[[Event], None], on_reset: Callable[[], None]) -> None:
        def hear(channel: bytes, message: bytes) -> None:
            try:
                try:
                    event: Event = decode(message)
                except UNREADABLE:
                    event = decode_event(message)
                if event.job_id.encode() != channel[_PREFIX:]:
                    raise WireError(f"a frame of {event.job_id!r} on the channel of another request")
            except WireError as error:  # the log has the frame; the stream's silence makes the gateway read it
                self._redis.metrics.store_error("message")
                if self._unreadable_frames.is_due():
                    log.warning("a message on %s cannot be read: %s", channel.decode(errors="replace"), error)
                return
            on_event(event)

        decode = event_decoder.decode
        self._hear = hear
        self._listens_to = keys.pattern(gateway_id)
        await self._redis.subscriber.subscribe(self._listens_to, hear, on_reset, is_pattern=True)

    @property
    def is_listening(self) -> bool:
        return self._redis.hears(self._listens_to)

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

    async def tick(self, gateway_id: str) -> Pool:
        pool = self._redis.pool
        tick = scripts.tick(pool, gateway_id, self._lifetimes.resume_window_ms, self._lifetimes.lease)
        depth, *seen = await self._redis.ask("tick", pool.queue, tick)
        if depth < 0:
            raise ConfigError(seen[0].decode())
        taken, about, dead_workers, is_new, now_ms = seen
        if dead_workers:  # so that their work is back in the queue even when no worker is left to do it
            try:
                await self._redis.run("reap", pool.queue, *(scripts.reap(pool, wid) for wid in dead_workers))
            except Refused:
                log.debug("dead workers could not be reaped; the next tick tries again")
        return Pool(
            depth=depth,
            workers=tuple(info for info in map(self._worker_info, about) if info is not None),
            num_taken=taken,
            is_new=bool(is_new),
            at=now_ms / 1000,
        )

    async def charge(self, key: str, limit: RateLimit, cost: int = 1) -> Verdict:
        charge = scripts.charge(key, limit, cost)
        allowed, remaining, reset_us, retry_us = await self._redis.ask("charge", keys.rate(key), charge)
        return Verdict(bool(allowed), remaining, reset_us / 1e6, retry_us / 1e6)

    def submit(
        self, job: Job, owner: str, max_depth: int, *, floor: int = 0, front: bool = False, share: Share = NO_SHARE
    ) -> Coroutine[Any, Any, int]:
        return self._submitter.submit(job, owner, max_depth, floor=floor, front=front, share=share)

    async def read(self, job_id: str, after: tuple[int, int] | None = None, *, job: Job | None = None) -> Record | None:
        """`InternalError` for a request that the store has and this version cannot read."""
        start = "-" if after is None else f"({after[0]}-{after[1]}"
        name, log_range = keys.job(job_id), command("XRANGE", keys.log(job_id), start, "+")
        try:
            if job is None:
                state = command("HMGET", name, *FIELDS, "deleted", "job"), command("TIME")
                hash_, now, entries = await self._redis.run_bulk("read", name, *state, log_range)
            else:
                state = command("HMGET", name, *FIELDS, "deleted"), command("TIME")
                hash_, now, entries = await self._redis.run("read", name, *state, log_range)
            if not any(hash_) or hash_[len(FIELDS)]:
                return None
            job = job or decode_job(hash_[-1] or b"")
            events = events_of(job_id, entries, after[1] if after else 0)
            if after is None and hash_[0] == b"done":
                events = ended(job_id, events)
            return record_of(job, hash_[: len(FIELDS)], now, events)
        except (ValueError, Refused) as error:  # of the wire, of a number, of Unicode; or of Redis
            if isinstance(error, Refused) and error.kind != "wrong_type":
                raise
            log.error("the request cannot be read: %s", error, extra={"request_id": job_id})
            raise InternalError("The store holds this request in a form that this gateway cannot read.") from error

    async def cancel(self, job_id: str, reason: EndReason, owner: str | None = None) -> CancelOutcome:
        cancel = scripts.cancel(job_id, reason, owner, self._lifetimes.retention_ms)
        reply = await self._redis.ask("cancel", keys.job(job_id), cancel)
        outcome: CancelOutcome = reply.decode()
        if outcome == "ended":
            await self._redis.ask("withdraw", self._redis.pool.queue, scripts.withdraw(self._redis.pool, job_id))
        return outcome

    async def adopt(self, job_id: str, gateway_id: str, *, is_read: bool = True) -> bool:
        adopt = scripts.adopt(job_id, gateway_id, is_read=is_read)
        return bool(await self._redis.ask("adopt", keys.job(job_id), adopt))

    async def mark_read(self, job_id: str) -> int:
        name = keys.job(job_id)  # in this order: an attempt that was begun again before the mark is seen behind it
        mark, look = command("HDEL", name, "unread"), command("HGET", name, "attempt")
        _, attempt = await self._redis.run("mark_read", name, mark, look)
        return number(attempt)

    async def requeue_if_missing(self, job_id: str) -> bool:
        pool = self._redis.pool
        return bool(await self._redis.ask("requeue_if_missing", pool.queue, scripts.requeue_if_missing(pool, job_id)))

    async def restore(self, job: Job, owner: str, tokens: Sequence[Token], attempt: int) -> bool:
        encoded = (encode_json(token) for token in tokens)
        restore = scripts.restore(job.id, birth_of(job, owner, self._lifetimes), attempt, encoded)
        outcome = await self._redis.ask("restore", keys.job(job.id), restore)
        if outcome:
            pool, is_again = self._redis.pool, outcome == RESTORED_BEFORE
            await self._redis.ask("enqueue", pool.queue, scripts.enqueue(pool, job.id, 0, "head", is_again=is_again))
        if outcome == MADE_AGAIN:
            await self._books.book_again(job, len(tokens))
        return bool(outcome)

    async def restore_end(self, outcome: Outcome, owner: str) -> bool:
        job, pool = outcome.job, self._redis.pool
        ages = outcome.created_ago_s, outcome.started_ago_s, outcome.first_token_ago_s, outcome.ended_ago_s
        restore = scripts.restore_end(
            job.id,
            birth_of(job, owner, self._lifetimes),
            outcome.attempt,
            (ms(outcome.keep_s), *(-1 if age_s is None else ms(age_s) for age_s in ages)),
            outcome.end,
            map(encode_json, outcome.tokens),
        )
        restored = await self._redis.ask("restore_end", keys.job(job.id), restore)
        if restored:
            await self._redis.ask("withdraw", pool.queue, scripts.withdraw(pool, job.id))
        if restored == MADE_AGAIN:
            await self._books.book_again(job, len(outcome.tokens), outcome.keep_s)
        return bool(restored)

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

    def retire(self, job_id: str, retention_s: float) -> None:
        after = b"%d" % ms(retention_s)
        names = keys.job(job_id).encode(), keys.log(job_id).encode()
        words = [_EXPIRE_SOONER % (len(name), name, len(after), after) for name in names]
        self._redis.request_conn(job_id).post(b"".join(words), len(words))

    def grow(self, job: Job, num_bytes: int, life_s: float) -> None:
        self._books.grow(job, num_bytes, life_s)

    def weigh(self, job: Job, num_bytes: int, keep_s: float | None) -> None:
        self._books.weigh(job, num_bytes, keep_s)

    def prolong(self, job: Job, num_bytes: int, life_s: float) -> None:
        self._books.prolong(job, num_bytes, life_s)

    async def delete(self, job: Job) -> bool:
        is_deleted = bool(await self._redis.ask("delete", keys.job(job.id), scripts.delete(job.id)))
        if is_deleted:
            self._books.unbook(job)
        return is_deleted

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

    # ── below the verbs ──────────────────────────────────────────────────────────────────────────────────────────

    def _worker_info(self, about: bytes) -> WorkerInfo | None:
        try:
            info: WorkerInfo = decode_json(about, WorkerInfo)
        except WireError as error:  # it may serve, but not what this gateway could name
            if self._unreadable_workers.is_due():
                log.warning("a worker announces what this version cannot read: %s", error)
            return None
        return info
