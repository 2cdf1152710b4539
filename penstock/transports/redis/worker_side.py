"""A worker's verbs on Redis. `transports/base.py` says what each promises; the rules are in `docs/protocol.md`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hiredis import ReplyError
from msgspec import Struct

from penstock.errors import ConfigError, InternalError, StoreUnavailable
from penstock.event import Event, Failed, fold
from penstock.fleet import WorkerInfo
from penstock.job import CancelReason, Claim
from penstock.logs import Seldom
from penstock.transports.base import Renewal, Transport
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.connection import COMMAND_TIMEOUT_S
from penstock.transports.redis.emitting import Emitter
from penstock.transports.redis.gateway_side import Terms
from penstock.transports.redis.scripts import command
from penstock.transports.redis.store import MISSED, Store, error_of, is_out_of_memory
from penstock.wire import NewerJob, WireError, decode_event, decode_job, decode_json, encode_json

log = logging.getLogger(__name__)

POLL_S = 0.05
NEWER_REST_S = 1.0
MAX_CLAIM_ROUNDS = 4


class _Hint(Struct, frozen=True):
    id: str
    reason: CancelReason


class WorkerSide(Transport):
    """The half of `RedisTransport` that workers use."""

    _store: Store
    _terms: Terms
    _emitter: Emitter
    _rests_until: float = 0.0
    _newer_jobs: Seldom

    async def enlist(self, info: WorkerInfo) -> None:
        pool = self._store.pool
        enlist = scripts.enlist(pool, info.id, encode_json(info), self._terms.lease)
        refusal = await self._store.ask("enlist", pool.queue, enlist)
        if refusal:
            raise ConfigError(refusal.decode())

    async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
        pool = self._store.pool
        renew = scripts.renew(pool, info.id, encode_json(info), self._terms.lease)
        lease, *states = await self._store.run_each(
            "renew", [(pool.queue, renew), *((keys.job(job_id), _look(job_id)) for job_id in running)], may_miss=True
        )
        if lease is MISSED:
            raise StoreUnavailable("Redis is away: the lease could not be renewed.")
        is_held, *rest = lease
        if not is_held:
            return Renewal(is_lost=True)
        held, dead, away = rest
        cancelled: dict[str, CancelReason] = {}
        gone: list[str] = []
        for job_id, looked in zip(running, states, strict=True):
            if looked is MISSED:  # its node is away: nothing is known, and a lease must not wait for that
                continue
            state, worker, cancel, owner, disconnect = looked
            if state != b"running" or worker != info.id.encode():
                gone.append(job_id)
            elif cancel is not None:
                cancelled[job_id] = cancel.decode()
            elif owner in away and disconnect != b"continue":  # nobody came back for it
                cancelled[job_id] = "client"
        return Renewal(
            is_lost=False,
            held=tuple(id_.decode() for id_ in held),
            dead=tuple(id_.decode() for id_ in dead),
            cancelled=cancelled,
            gone=tuple(gone),
        )

    async def watch(self, process_id: str, on_cancel: Callable[[str, CancelReason], None]) -> None:
        def hear(_channel: bytes, message: bytes) -> None:
            hint: _Hint = decode_json(message, _Hint)
            on_cancel(hint.id, hint.reason)

        await self._store.ears.subscribe(keys.control(process_id), hear)

    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        """The reply may be lost: what was moved is in the list, whether it arrives or not."""
        timeout_s = max(timeout_s, 0.01)  # 0 would be for ever
        if self._rest_s > 0:
            await asyncio.sleep(min(timeout_s, self._rest_s))
            return None
        pool = self._store.pool
        move = command("BLMOVE", pool.queue, pool.worker(worker_id), "LEFT", "RIGHT", f"{timeout_s:.3f}")
        (reply,) = await self._store.blocking.execute(move.packed, 1, timeout_s + COMMAND_TIMEOUT_S)
        if is_out_of_memory(reply):  # `take` works without memory: let the caller poll it
            await asyncio.sleep(min(timeout_s, POLL_S))
            return None
        if isinstance(reply, ReplyError):
            raise error_of("wait", reply)
        return None if reply is None else str(reply, "utf-8")

    async def take(self, worker_id: str, want: int) -> list[str]:
        pool = self._store.pool
        want = 0 if self._rest_s > 0 else want
        held = await self._store.ask("take", pool.queue, scripts.take(pool, worker_id, want))
        return [id_.decode() for id_ in held]

    async def claim(self, worker_id: str, ids: Sequence[str]) -> list[Claim]:
        claims: dict[str, Claim] = {}
        over: list[scripts.Command] = []
        newer: list[str] = []
        todo = [(job_id, "") for job_id in dict.fromkeys(ids)]
        for _ in range(MAX_CLAIM_ROUNDS):
            if not todo:
                break
            busy: list[tuple[str, str]] = []
            asked = [(keys.job(job_id), scripts.claim(job_id, worker_id, holder)) for job_id, holder in todo]
            replies = await self._store.run_each("claim", asked, may_miss=True)
            for (job_id, _), reply in zip(todo, replies, strict=True):
                if reply is MISSED:  # it stays in the list, and is claimed again
                    continue
                outcome = reply[0]
                if outcome == b"claimed":
                    try:
                        claim = await self._open(worker_id, job_id, reply)
                    except NewerJob:  # its version does not come first, where the script looks for it
                        requeue = scripts.requeue(job_id, reply[1], worker_id)
                        await self._store.ask("requeue", keys.job(job_id), requeue)
                        newer.append(job_id)
                        continue
                    if claim is not None:
                        claims[job_id] = claim
                elif outcome == b"newer":
                    newer.append(job_id)
                elif outcome == b"busy":
                    busy.append((job_id, reply[1].decode()))
                else:  # missing, done, ended, poisoned
                    over.append(scripts.drop(self._store.pool, worker_id, job_id))
                if outcome == b"poisoned":
                    over += self._bury(job_id, reply)
            todo = await self._settle(worker_id, busy)
        if over:
            await self._store.run("drop", self._store.pool.queue, *over)
        if newer:
            await self._pass_on(worker_id, newer)
        return [claims[job_id] for job_id in dict.fromkeys(ids) if job_id in claims]

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        return await self._emitter.emit(worker_id, events)

    async def hand_back(self, worker_id: str, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        store, pool = self._store, self._store.pool
        ids = [claim.job.id for claim in claims]
        requeues = (scripts.requeue(claim.job.id, claim.attempt, worker_id) for claim in claims)
        outcomes = await store.run_each("requeue", zip(map(keys.job, ids), requeues, strict=True))
        back = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome == b"queued"]
        lost = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome == b"lost"]
        await store.run(
            "hand_back",
            pool.queue,
            scripts.hand_back(pool, worker_id, back),
            *(scripts.drop(pool, worker_id, id_) for id_ in lost),
        )

    async def reap(self, dead_worker_id: str) -> int:
        pool = self._store.pool
        return int(await self._store.ask("reap", pool.queue, scripts.reap(pool, dead_worker_id)))

    async def leave(self, worker_id: str) -> None:
        pool = self._store.pool
        await self._store.ask("leave", pool.queue, scripts.reap(pool, worker_id, is_leaving=True))

    # ── below the verbs ──────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, worker_id: str, busy: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of jobs that run at another worker: those whose worker is dead, or has lost them, to be claimed from it."""
        if not busy:
            return []
        pool = self._store.pool
        asked = [scripts.settle(pool, worker_id, other, job_id) for job_id, other in busy]
        settled = await self._store.run("settle", pool.queue, *asked)
        return [pair for pair, is_settled in zip(busy, settled, strict=True) if not is_settled]

    @property
    def _rest_s(self) -> float:
        return self._rests_until - time.monotonic()

    async def _pass_on(self, worker_id: str, ids: Sequence[str]) -> None:
        """Requests of a release to come: to the tail of the queue, for a worker of that release.

        This worker takes nothing for a moment, so that they do not come round again at once.
        """
        self._rests_until = time.monotonic() + NEWER_REST_S
        if self._newer_jobs.is_due():
            log.warning("requests of a newer version are in the queue; this worker leaves them to newer workers")
        pool = self._store.pool
        for job_id in ids:
            back = scripts.enqueue(pool, job_id, 0, "tail", is_again=False)
            await self._store.run("pass_on", pool.queue, back, scripts.drop(pool, worker_id, job_id))

    async def _open(self, worker_id: str, job_id: str, reply: list[Any]) -> Claim | None:
        """A claim reply as a `Claim`. What cannot be read ends here, with an answer for its client. `NewerJob`."""
        _, attempt, now, deadline, created, deaths, job, frames = reply
        self._emitter.claimed(job_id, now)
        try:
            decoded = decode_job(job)
            if decoded.id != job_id:
                raise WireError(f"its JSON is of the request {decoded.id!r}")
            tokens = fold(map(decode_event, frames)).tokens if frames else ()
        except NewerJob:
            raise
        except WireError as error:
            log.error("job %s cannot be read: %s", job_id, error)
            unread = InternalError("The request could not be read by the worker that took it.")
            seq = max(map(_end_of, frames), default=0)
            await self.emit(worker_id, [Failed.of(job_id, attempt, seq, unread)])
            return None
        return Claim(
            job=decoded,
            attempt=attempt,
            deadline_at=time.monotonic() + (deadline - now) / 1000,
            tokens=tokens,
            queued_s=(now - created) / 1000,
            num_deaths=deaths,
        )

    def _bury(self, job_id: str, reply: list[Any]) -> list[scripts.Command]:
        entry = {"id": job_id, "model": reply[1].decode(), "deaths": reply[2], "error": "request_poisoned"}
        return scripts.bury(self._store.pool, encode_json(entry))


def _look(job_id: str) -> scripts.Command:
    """What a worker asks of each job that it runs, whenever it renews its lease."""
    return command("HMGET", keys.job(job_id), "state", "worker", "cancel", "owner", "disconnect")


def _end_of(frame: bytes) -> int:
    """How many tokens there are after a frame; 0 for one that cannot be read."""
    try:
        return decode_event(frame).end
    except WireError:
        return 0
