"""claim: jobs of a worker's list become its own; what cannot run leaves the list: ended, dead, or of a newer version.

An error of one job costs the others nothing. Knows nothing of leases and engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hiredis import ReplyError

from penstock.errors import InternalError, RequestPoisoned
from penstock.event import Failed, fold
from penstock.job import Claim
from penstock.logs import Seldom
from penstock.transports.base import UNREADABLE, DeadJob
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.client import MISSED, RedisClient
from penstock.transports.redis.driver.command import Command
from penstock.transports.redis.emitter import Emitter
from penstock.transports.redis.refusals import Refused, shown
from penstock.wire import NewerJob, WireError, decode_event, decode_job, encode_json

log = logging.getLogger(__name__)

NEWER_REST_S = 1.0
MAX_CLAIM_ROUNDS = 4


class _Try(NamedTuple):
    id: str
    holder: str | bytes = ""  # the worker that it may be taken from
    lives: bool = False  # whether that worker lives, as far as is known


_Dead = tuple[str | bytes, str, int, str]  # id, model, deaths, why it cannot be read ("" for one that is poison)


class Claimer:
    """Claims for the workers of one process: decides what of its list a worker runs.

    `rest_s`: for how long, from now, a worker takes nothing; 0 or less when it may.
    """

    def __init__(self, client: RedisClient, emitter: Emitter) -> None:
        self._redis = client
        self._emitter = emitter
        self._rests_until = 0.0
        self._newer_jobs = Seldom()

    @property
    def rest_s(self) -> float:
        return self._rests_until - time.monotonic()

    async def claim(self, worker_id: str, ids: Sequence[str]) -> list[Claim]:
        claims: dict[str, Claim] = {}
        over: list[Command] = []
        newer: list[str] = []
        dead: list[_Dead] = []
        failed: list[ReplyError] = []
        todo: list[_Try] = [_Try(job_id) for job_id in dict.fromkeys(ids)]
        for _ in range(MAX_CLAIM_ROUNDS):
            if not todo:
                break
            busy: list[tuple[str, bytes]] = []
            asked = [(keys.job(one.id), scripts.claim(one.id, worker_id, one.holder, lives=one.lives)) for one in todo]
            replies = await self._redis.run_each("claim", asked, may_miss=True)
            for (job_id, _, _), reply in zip(todo, replies, strict=True):
                if reply is MISSED:  # it stays in the list, and is claimed again
                    continue
                if isinstance(reply, ReplyError):  # so does this one: it must not cost the others their claims
                    failed.append(reply)
                    continue
                outcome = reply[0]
                if outcome == b"claimed":
                    try:
                        claim = await self._open(worker_id, job_id, reply)
                    except NewerJob:  # its version does not come first, where the script looks for it
                        requeue = scripts.requeue(job_id, reply[1], worker_id)
                        await self._redis.ask("requeue", keys.job(job_id), requeue)
                        newer.append(job_id)
                        continue
                    if claim is not None:
                        claims[job_id] = claim
                elif outcome == b"newer":
                    newer.append(job_id)
                elif outcome == b"busy":
                    busy.append((job_id, reply[1]))
                elif outcome == b"poisoned":
                    dead.append((job_id, shown(reply[1]), reply[2], ""))
                elif outcome == b"unreadable":
                    dead.append((job_id, shown(reply[1]), 0, shown(reply[2])))
                else:  # missing, done, ended
                    over.append(scripts.drop(self._redis.pool, worker_id, job_id))
            todo = await self._settle(worker_id, busy)
        if over:
            await self._redis.run("drop", self._redis.pool.queue, *over)
        if newer:
            await self._pass_on(worker_id, newer)
        if dead:
            await self.set_aside(worker_id, dead)
        if failed and not claims:
            raise Refused(f"Redis refused to claim: {failed[0]}")
        return [claims[job_id] for job_id in dict.fromkeys(ids) if job_id in claims]

    async def rerun(self, worker_id: str, claims: Sequence[Claim]) -> list[Claim]:
        asked = [(keys.job(one.job.id), scripts.rerun(one.job.id, one.attempt, worker_id)) for one in claims]
        left: list[Claim] = []
        failed: list[ReplyError] = []
        for claim, reply in zip(claims, await self._redis.run_each("rerun", asked), strict=True):
            if isinstance(reply, ReplyError):  # it stays in the list, and is claimed again
                failed.append(reply)
            elif reply == b"read":
                left.append(claim)
            elif reply != b"lost":
                self._emitter.begun_again(claim.job.id)
                left.append(claim.rerun(reply))
        if failed and not left:
            raise Refused(f"Redis refused to rerun: {failed[0]}")
        return left

    # ── below ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self, worker_id: str, busy: list[tuple[str, bytes]]) -> list[_Try]:
        """Of jobs that run at another worker: those whose worker is dead, or has lost them, to be claimed from it."""
        if not busy:
            return []
        pool = self._redis.pool
        asked = [scripts.settle(pool, worker_id, other, job_id) for job_id, other in busy]
        settled = await self._redis.run("settle", pool.queue, *asked)
        return [
            _Try(job_id, other, how == scripts.LIVES)
            for (job_id, other), how in zip(busy, settled, strict=True)
            if how != scripts.SETTLED
        ]

    async def _pass_on(self, worker_id: str, ids: Sequence[str]) -> None:
        """Move requests of a newer release to the tail of the queue, for a worker of that release.

        This worker takes nothing for a moment, so that it does not take them again at once.
        """
        self._rests_until = time.monotonic() + NEWER_REST_S
        if self._newer_jobs.is_due():
            log.warning("requests of a newer version are in the queue; this worker leaves them to newer workers")
        pool = self._redis.pool
        for job_id in ids:
            back = scripts.enqueue(pool, job_id, 0, "tail", is_again=False)
            await self._redis.run("pass_on", pool.queue, back, scripts.drop(pool, worker_id, job_id))

    async def _open(self, worker_id: str, job_id: str, reply: list[Any]) -> Claim | None:
        """A claim reply as a `Claim`. None if it cannot be read: the job ends with an error. Raises `NewerJob`."""
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
            await self._emitter.emit(worker_id, [Failed.of(job_id, attempt, seq, unread)])
            await self.set_aside(worker_id, [(job_id, "", 0, "its JSON, or a frame of its log, cannot be read")])
            return None
        return Claim(
            job=decoded,
            attempt=attempt,
            deadline_at=time.monotonic() + (deadline - now) / 1000,
            tokens=tokens,
            queued_s=(now - created) / 1000,
            num_deaths=deaths,
        )

    async def set_aside(self, worker_id: str, dead: Iterable[_Dead]) -> None:
        """Move requests that end workers, or cannot be read, from this worker's list to the dead-letter list."""
        pool = self._redis.pool
        entries = []
        for job_id, model, deaths, why in dead:
            known = job_id if isinstance(job_id, str) else shown(job_id)
            if why:
                log.error("request %s goes to the dead-letter list: %s", known, why)
                self._redis.metrics.store_error("set_aside")
            entry = DeadJob(
                id=known, model=model, deaths=deaths, error=UNREADABLE if why else RequestPoisoned.code, reason=why
            )
            entries.append(scripts.add_dead(pool, worker_id, encode_json(entry), job_id))
        await self._redis.run("add_dead", pool.queue, *entries)


def is_text(name: bytes) -> bool:
    """UTF-8. Ids that gateways and workers make are; a list may hold others."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _end_of(frame: bytes) -> int:
    """Number of tokens after a frame; 0 for a frame that cannot be read."""
    try:
        return decode_event(frame).end
    except WireError:
        return 0
