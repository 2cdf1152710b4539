"""The stored requests of each caller in Redis: booked with a submit, weighed at the end.

All of it is in the caller's own slot and is written by `book` and `weigh`. The counts are exact over any number of
gateways, and begin at 0 after a FLUSHALL, as the requests do.
"""

from __future__ import annotations

import logging
import time

from hiredis import ReplyError

from penstock.errors import StorageQuota, StoreUnavailable
from penstock.job import Job
from penstock.transports.quota import REQUEST_BYTES, Recently, Share, booked_answer_bytes
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import Command, command
from penstock.transports.redis.driver.connection import Connection
from penstock.transports.redis.lifetimes import Lifetimes, ms
from penstock.transports.redis.weighing import Weighing
from penstock.wire import encode_job

log = logging.getLogger(__name__)

NEAR_FOR_S = 60.0


class CallerBooks:
    """The books of one gateway's callers. Which of them have used most of their share is remembered for a while."""

    def __init__(self, client: RedisClient, lifetimes: Lifetimes) -> None:
        self._redis = client
        self._lifetimes = lifetimes
        self._near = Recently(NEAR_FOR_S)
        self._weighing = Weighing(self._post)

    def is_near(self, caller: str) -> bool:
        """Little is left of its share: the next request is better judged before it is stored."""
        return self._near.has(caller, time.monotonic())

    def weigh(self, job: Job, num_bytes: int, keep_s: float | None) -> None:
        keep_ms = self._lifetimes.retention_ms if keep_s is None else ms(keep_s)
        kept = job.kept()
        if kept is job:
            self._weighing.add(job.caller, (job.id, num_bytes, keep_ms, ""))
            return
        shorter = encode_job(kept)
        self._redis.request_conn(job.id).post(scripts.shorten(job.id, shorter).packed, 1)
        self._weighing.add(job.caller, (job.id, num_bytes, keep_ms, REQUEST_BYTES + len(shorter)))

    def grow(self, job: Job, num_bytes: int, life_s: float) -> None:
        size = REQUEST_BYTES + len(encode_job(job))
        self._post(job.caller, scripts.book(job, size, num_bytes, ms(life_s), Share()))

    def prolong(self, job: Job, num_bytes: int, life_s: float) -> None:
        names = keys.job(job.id), keys.log(job.id)
        words = b"".join(command("PEXPIRE", name, ms(life_s), "GT").packed for name in names)
        self._redis.request_conn(job.id).post(words, len(names))
        size = REQUEST_BYTES + len(encode_job(job.kept()))
        self._weighing.flush()  # it must not come behind this
        self._post(job.caller, scripts.book(job, size, num_bytes, ms(life_s), Share()))

    def unbook(self, job: Job) -> None:
        """Nothing is left of a request: it was not admitted, or is deleted."""
        self._weighing.add(job.caller, (job.id, 0, 0, ""))

    def flush(self) -> None:
        """Post what is waiting to be weighed."""
        self._weighing.flush()

    def booking(self, job: Job, size: int, share: Share, keep_s: float | None = None, num_tokens: int = 0) -> Command:
        """Books a job whose JSON has `size` bytes, for the longest that it may live, or for `keep_s`."""
        life_ms = ms(job.timeout_s) + self._lifetimes.retention_of(job) if keep_s is None else ms(keep_s)
        return scripts.book(job, REQUEST_BYTES + size, booked_answer_bytes(job, num_tokens), life_ms, share)

    def verdict(self, job: Job, size: int, share: Share, reply: list[int] | ReplyError) -> StorageQuota | None:
        """Interpret a booking's reply. A booking that fails does not fail the request."""
        if isinstance(reply, ReplyError):
            self._redis.refusal("book", reply)  # counts and logs it
            return None
        is_booked, num, num_bytes, frees_in_ms = reply
        if not is_booked or share.is_near(num, num_bytes):
            self._near.note(job.caller, time.monotonic())
        if is_booked:
            return None
        wanted = REQUEST_BYTES + size + booked_answer_bytes(job)
        return share.refusal(num, num_bytes, wanted, frees_in_ms / 1000)

    async def book_alone(self, job: Job, booking: Command) -> list[int] | ReplyError:
        """Book before anything is stored: a round trip of its own."""
        self._weighing.flush()  # where little is left, each ended request must count at its size
        (reply,) = await self._redis.exchange("book", self._conn(job.caller), (booking,))
        booked: list[int] | ReplyError = reply
        return await self.repaired(job, booking, booked) if isinstance(booked, ReplyError) else booked

    async def repaired(self, job: Job, booking: Command, refusal: ReplyError) -> list[int] | ReplyError:
        """Book again, where only a key of a wrong type was in the way."""
        conn = self._conn(job.caller)
        if not await self._redis.repair(conn, refusal, booking.on):
            return refusal
        (booked,) = await self._redis.exchange("book", conn, (booking,))
        again: list[int] | ReplyError = booked
        return again

    async def book_again(self, job: Job, num_tokens: int, keep_s: float | None = None) -> None:
        """A request that was admitted before is stored anew, with `num_tokens` of its answer: it counts, whatever the
        share. `keep_s`: it has ended.
        """
        booking = self.booking(job, len(encode_job(job)), Share(), keep_s, num_tokens)
        try:
            self.verdict(job, 0, Share(), await self.book_alone(job, booking))
        except StoreUnavailable as error:
            log.warning("request %s is not in its caller's books: %s", job.id, error.message)

    def _conn(self, caller: str) -> Connection:
        return self._redis.conn(keys.caller(caller)[0])

    def _post(self, caller: str, what: Command) -> None:
        """On the caller's slot, not awaited."""
        self._conn(caller).post(what.packed, 1)
