"""A worker's verbs on Redis. `transports/base.py` has the contract of each; the rules are in `docs/protocol.md`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from hiredis import ReplyError

from penstock.errors import ConfigError, StoreUnavailable
from penstock.event import Event
from penstock.fleet import WorkerInfo
from penstock.job import CancelReason, Claim
from penstock.transports.base import Renewal, WorkerStore
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.base import RedisBase
from penstock.transports.redis.claimer import Claimer, is_text
from penstock.transports.redis.client import MISSED, RedisClient
from penstock.transports.redis.driver.command import Command, command
from penstock.transports.redis.driver.connection import COMMAND_TIMEOUT_S
from penstock.transports.redis.emitter import Emitter
from penstock.transports.redis.lifetimes import Lifetimes
from penstock.transports.redis.refusals import Refused, is_out_of_memory, is_wrong_type, shown
from penstock.wire import encode_json

log = logging.getLogger(__name__)

POLL_S = 0.05


class RedisWorkerStore(RedisBase, WorkerStore):
    """`WorkerStore` over one `RedisClient`."""

    def __init__(self, client: RedisClient, lifetimes: Lifetimes) -> None:
        super().__init__(client, lifetimes)
        self._emitter = Emitter(client)
        self._claimer = Claimer(client, self._emitter)

    async def enlist(self, info: WorkerInfo) -> None:
        pool = self._redis.pool
        enlist = scripts.enlist(pool, info.id, encode_json(info), self._lifetimes.lease)
        refusal = await self._redis.ask("enlist", pool.queue, enlist)
        if refusal:
            raise ConfigError(shown(refusal))

    async def renew(self, info: WorkerInfo, running: Sequence[str]) -> Renewal:
        pool = self._redis.pool
        renew = scripts.renew(pool, info.id, encode_json(info), self._lifetimes.lease)
        lease, *states = await self._redis.run_each(
            "renew", [(pool.queue, renew), *((keys.job(job_id), _look(job_id)) for job_id in running)], may_miss=True
        )
        if lease is MISSED or isinstance(lease, ReplyError):
            raise StoreUnavailable(
                f"The lease could not be renewed: {lease if lease is not MISSED else 'Redis is away'}."
            )
        is_held, *rest = lease
        if not is_held:
            return Renewal(is_lost=True)
        held, dead, away = rest
        named = [wid for wid in dead if is_text(wid)]
        for wid in dead:
            if wid not in named:  # not a worker's id, but harmless: its list returns to the queue
                await self._redis.ask("reap", pool.queue, scripts.reap(pool, wid))
        cancelled: dict[str, CancelReason] = {}
        gone: list[str] = []
        for job_id, looked in zip(running, states, strict=True):
            if looked is MISSED:  # its node is away: nothing is known, and a lease must not wait for that
                continue
            if isinstance(looked, ReplyError):  # of another type: not a job any more. Refused: nothing is known
                if is_wrong_type(looked):
                    gone.append(job_id)
                continue
            state, worker, cancel, owner, disconnect = looked
            if state != b"running" or worker != info.id.encode():
                gone.append(job_id)
            elif cancel is not None:
                cancelled[job_id] = (
                    "deadline" if cancel == b"deadline" else "operator" if cancel == b"operator" else "client"
                )
            elif owner in away and disconnect != b"continue":  # its owner is away, and no other gateway has adopted it
                cancelled[job_id] = "client"
        return Renewal(
            is_lost=False,
            held=tuple(map(shown, held)),
            dead=tuple(map(shown, named)),
            cancelled=cancelled,
            gone=tuple(gone),
        )

    async def wait(self, worker_id: str, timeout_s: float) -> str | None:
        """The reply may be lost: what was moved is in the list, whether it arrives or not."""
        timeout_s = max(timeout_s, 0.01)  # 0 would mean no timeout
        if self._claimer.rest_s > 0:
            await asyncio.sleep(min(timeout_s, self._claimer.rest_s))
            return None
        pool = self._redis.pool
        move = command("BLMOVE", pool.queue, pool.worker(worker_id), "LEFT", "RIGHT", f"{timeout_s:.3f}")
        conn = self._redis.blocking
        (reply,) = await conn.execute(move.packed, 1, timeout_s + COMMAND_TIMEOUT_S)
        if is_out_of_memory(reply):  # `take` works without memory: let the caller poll it
            await asyncio.sleep(min(timeout_s, POLL_S))
            return None
        if isinstance(reply, ReplyError):
            refused = self._redis.refusal("wait", reply)
            await self._redis.repair(self._redis.conn(pool.queue), reply, (pool.queue, pool.worker(worker_id)))
            raise refused
        return None if reply is None or not is_text(reply) else str(reply, "utf-8")

    async def take(self, worker_id: str, want: int) -> list[str]:
        pool = self._redis.pool
        want = 0 if self._claimer.rest_s > 0 else want
        held = await self._redis.ask("take", pool.queue, scripts.take(pool, worker_id, want))
        named = [id_ for id_ in held if is_text(id_)]
        if len(named) < len(held):
            strange = [id_ for id_ in dict.fromkeys(held) if id_ not in named]
            await self._claimer.set_aside(worker_id, [(id_, "", 0, "its id is not UTF-8") for id_ in strange])
        return [id_.decode() for id_ in named]

    def claim(self, worker_id: str, ids: Sequence[str]) -> Coroutine[Any, Any, list[Claim]]:
        return self._claimer.claim(worker_id, ids)

    def rerun(self, worker_id: str, claims: Sequence[Claim]) -> Coroutine[Any, Any, list[Claim]]:
        return self._claimer.rerun(worker_id, claims)

    def emit(self, worker_id: str, events: Iterable[Event]) -> Coroutine[Any, Any, set[str]]:
        return self._emitter.emit(worker_id, events)

    async def hand_back(self, worker_id: str, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        client, pool = self._redis, self._redis.pool
        ids = [claim.job.id for claim in claims]
        requeues = (scripts.requeue(claim.job.id, claim.attempt, worker_id) for claim in claims)
        outcomes = await client.run_each("requeue", zip(map(keys.job, ids), requeues, strict=True))
        for outcome in outcomes:  # an unreadable id stays in the list, and returns to the queue with it
            if isinstance(outcome, ReplyError) and not is_wrong_type(outcome):
                raise Refused(f"Redis refused to requeue: {outcome}")
        back = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome == b"queued"]
        lost = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome == b"lost"]
        await client.run(
            "hand_back",
            pool.queue,
            scripts.hand_back(pool, worker_id, back),
            *(scripts.drop(pool, worker_id, id_) for id_ in lost),
        )

    async def reap(self, dead_worker_id: str) -> int:
        pool = self._redis.pool
        return int(await self._redis.ask("reap", pool.queue, scripts.reap(pool, dead_worker_id)))

    async def leave(self, worker_id: str) -> None:
        pool = self._redis.pool
        await self._redis.ask("leave", pool.queue, scripts.reap(pool, worker_id, is_leaving=True))

    def clone_for_thread(self) -> RedisWorkerStore:
        return RedisWorkerStore(self._redis.clone(), self._lifetimes)


def _look(job_id: str) -> Command:
    """The fields that a worker reads of each job that it runs, at each renewal of its lease."""
    return command("HMGET", keys.job(job_id), "state", "worker", "cancel", "owner", "disconnect")
