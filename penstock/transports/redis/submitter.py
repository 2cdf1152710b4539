"""How a request gets into Redis: booked for its caller, created, and pushed; or nothing of it stays."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from hiredis import ReplyError

from penstock.errors import StoreUnavailable
from penstock.job import Job
from penstock.limit import Limit
from penstock.transports.base import NO_SHARE
from penstock.transports.quota import Recently, Share, queue_full
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.books import CallerBooks
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import Command, command
from penstock.transports.redis.lifetimes import Lifetimes, ms
from penstock.transports.redis.refusals import Refused
from penstock.transports.redis.scripts import Birth
from penstock.transports.redis.summaries import about
from penstock.wire import encode_job

SUBMIT_WITHIN_S = 2.0
SHARE_FULL = -2  # a reply of enqueue.lua
CROWDING_FOR_S = 0.05
TAKEN_BACK_MS = 1000


class Submitter:
    """Submits for one gateway. `_crowding`: callers that had used up their share of the queue a moment ago."""

    def __init__(self, client: RedisClient, lifetimes: Lifetimes, books: CallerBooks) -> None:
        self._redis = client
        self._lifetimes = lifetimes
        self._books = books
        self._crowding = Recently(CROWDING_FOR_S)

    async def submit(
        self, job: Job, owner: str, max_depth: int, *, floor: int = 0, front: bool = False, share: Share = NO_SHARE
    ) -> int:
        # The queue has just refused this caller, and each check costs it work.
        if share.max_queued and self._crowding.has(job.caller, time.monotonic()):
            raise share.queue_full()
        asked = _Asked(job, birth_of(job, owner, self._lifetimes), floor, max_depth, "head" if front else "tail", share)
        is_again = False
        limit = Limit(time.monotonic() + SUBMIT_WITHIN_S)
        try:
            with limit:
                while True:
                    try:
                        return await self._submit(asked, is_again)
                    except Refused:
                        raise
                    except StoreUnavailable:  # the outcome is unknown: from here on look before pushing
                        is_again = True
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise StoreUnavailable(f"Redis has been away for {SUBMIT_WITHIN_S:g} s.") from None
        finally:
            limit.close()

    # ── below the verb ───────────────────────────────────────────────────────────────────────────────────────────

    async def _submit(self, asked: _Asked, is_again: bool) -> int:
        """Book, create, then enqueue: in one pipeline where all go to one server, and nothing is known to be there.

        What is refused after it was created is taken back. Where little is left of the caller's share, and on several
        servers, the booking is asked first, so that nothing has to be.
        """
        job, share, client, pool = asked.job, asked.share, self._redis, self._redis.pool
        booking = self._books.booking(job, asked.size, share)
        create = scripts.create(job.id, asked.birth, asked.floor)
        conn, queue_conn = client.conn(keys.job(job.id)), client.conn(pool.queue)
        if client.is_one_server and not is_again and not self._books.is_near(job.caller):
            enqueue = asked.enqueue(pool, is_again=False)
            booked, created, depth = await client.exchange("submit", conn, (booking, create, enqueue))
            if isinstance(booked, ReplyError):
                booked = await self._books.repaired(job, booking, booked)
            refusal = self._books.verdict(job, asked.size, share, booked)
            if refusal is not None:
                await self._take_back(job)
                raise refusal
        else:
            refusal = self._books.verdict(job, asked.size, share, await self._books.book_alone(job, booking))
            if refusal is not None:
                raise refusal
            (created,) = await client.exchange("create", conn, (create,))
            if created in (b"running", b"done"):  # an earlier try got it further than the queue
                return int(await client.ask("depth", pool.queue, command("LLEN", pool.queue)))
            depth = 0
            if not isinstance(created, ReplyError):
                (depth,) = await client.exchange("enqueue", queue_conn, (asked.enqueue(pool, is_again=is_again),))
        if isinstance(depth, ReplyError):
            enqueue = asked.enqueue(pool, is_again=is_again)
            if await client.repair(queue_conn, depth, enqueue.on):
                (depth,) = await client.exchange("enqueue", queue_conn, (enqueue,))
        for reply in (created, depth):
            if isinstance(reply, ReplyError):
                refused = client.refusal("submit", reply)
                self._books.unbook(job)
                if created == b"":
                    await client.ask("discard", keys.job(job.id), scripts.discard(job.id))
                raise refused
        if depth < 0 and created != b"":  # an earlier submit of this very job may have got it a place
            depth = await client.ask("enqueue", pool.queue, asked.enqueue(pool, is_again=True))
        if depth < 0 and await client.ask("discard", keys.job(job.id), scripts.discard(job.id)):
            self._books.unbook(job)
            if depth == SHARE_FULL:
                self._crowding.note(job.caller, time.monotonic())
                raise share.queue_full()
            raise queue_full(asked.max_depth)
        return int(depth) if depth >= 0 else asked.max_depth

    async def _take_back(self, job: Job) -> None:
        """It was created beyond its caller's share: nothing is left of it, or nearly nothing if a worker has it."""
        if await self._redis.ask("discard", keys.job(job.id), scripts.discard(job.id)):
            await self._redis.ask("withdraw", self._redis.pool.queue, scripts.withdraw(self._redis.pool, job.id))
        else:
            cancel = scripts.cancel(job.id, "operator", None, TAKEN_BACK_MS)
            await self._redis.ask("cancel", keys.job(job.id), cancel)


def birth_of(job: Job, owner: str, lifetimes: Lifetimes) -> Birth:
    """The fields that create and restore write into a new hash."""
    lives = ms(job.timeout_s), lifetimes.retention_of(job)
    marks: tuple[Literal["unread"], ...] = () if job.stream else ("unread",)
    return Birth(encode_job(job), job.model, job.on_disconnect, owner, *lives, about(job), marks)


@dataclass(slots=True, frozen=True, eq=False)
class _Asked:
    """A submit with its arguments."""

    job: Job
    birth: Birth
    floor: int
    max_depth: int
    where: Literal["head", "tail"]
    share: Share

    @property
    def size(self) -> int:
        return len(self.birth.job)

    def enqueue(self, pool: keys.PoolKeys, *, is_again: bool) -> Command:
        caller = self.job.caller
        most = self.share.max_queued if caller else 0
        return scripts.enqueue(
            pool, self.job.id, self.max_depth, self.where, is_again=is_again, caller=caller, max_of_caller=most
        )
