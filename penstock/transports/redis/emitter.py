"""emit: one step's events to their logs and channels, in one pipeline and one round trip.

A job with one frame in the step (nearly always) takes the fast way, XADD and PUBLISH; the order of its stream is the
fence. Several frames of one job go through a script, which cannot leave a hole between them, and so does a job's first
frame on another connection than that of its claim: the server behind it may have an older log, and XADD would accept
it. A refused XADD means one of three things (a higher attempt; this very frame is there already; no memory), and
`append.lua` returns which. Knows nothing of leases and queues, but that what is finished leaves the worker's list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

from hiredis import ReplyError

from penstock.event import Event, Started, Terminal, Tokens
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.command import Command
from penstock.transports.redis.driver.connection import Connection
from penstock.transports.redis.driver.link import Link, Reply
from penstock.transports.redis.frames import FramePacker
from penstock.transports.redis.refusals import Refused, is_wrong_type
from penstock.wire import encode_event

_MAX_KNOWN = 8192


class _Step:
    """One attempt's share of a step that is not a single frame of tokens: its frames in order, and its end."""

    __slots__ = ("attempt", "end", "frames", "job_id")

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.frames: list[tuple[Started | Tokens, bytes]] = []
        self.end: Terminal | None = None

    @property
    def is_first(self) -> bool:
        """Whether it holds the job's first token."""
        event = self.frames[0][0] if self.frames else self.end
        return event is not None and event.seq == 0 and event.end > 0

    @property
    def num_replies(self) -> int:
        return bool(self.frames) + (self.end is not None)

    def append(self) -> Command:
        frames = ((event.seq, event.end, frame) for event, frame in self.frames)
        return scripts.append(self.job_id, self.attempt, frames)

    def finish(self, end: Terminal, first_ms: int) -> Command:
        return scripts.finish(self.job_id, self.attempt, end.seq, encode_event(end), first_ms)


class Emitter:
    """Emits for the workers of one transport."""

    def __init__(self, client: RedisClient) -> None:
        self._redis = client
        self._packer = FramePacker()
        self._known: WeakKeyDictionary[Link, set[str]] = WeakKeyDictionary()  # the jobs that each link has served
        self._clocks: dict[str, float] = {}  # of each job: Redis' clock less ours at its claim, ms
        self._first: dict[str, int] = {}  # when it had its first token, on Redis' clock

    def claimed(self, job_id: str, now_ms: int) -> None:
        """A worker has just claimed this job, at `now_ms` on Redis' clock."""
        if len(self._clocks) >= _MAX_KNOWN:  # jobs that left without an end
            self._clocks.clear()
            self._first.clear()
        self._clocks[job_id] = now_ms - time.monotonic() * 1000
        link = self._redis.request_conn(job_id).link
        if link is not None:
            self._served(link).add(job_id)

    def begun_again(self, job_id: str) -> None:
        """The first token of this job is yet to come."""
        self._first.pop(job_id, None)

    def _served(self, link: Link) -> set[str]:
        known = self._known.setdefault(link, set())
        if len(known) >= _MAX_KNOWN:
            known.clear()
        return known

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        refused: set[str] = set()
        finished: list[str] = []
        groups = self._by_server(events)
        if len(groups) == 1:
            await self._emit(*groups.popitem(), refused, finished)
        else:  # on a cluster: side by side; an error of one node does not stop the others
            emitting = (self._emit(conn, group, refused, finished) for conn, group in groups.items())
            for error in await asyncio.gather(*emitting, return_exceptions=True):
                if error is not None:
                    raise error
        if finished:
            self._drop(worker_id, finished)
        return refused

    def _by_server(self, events: Iterable[Event]) -> dict[Connection, list[Event]]:
        client = self._redis
        if client.is_one_server:
            listed = list(events)
            return {client.request_conn(listed[0].job_id): listed} if listed else {}
        groups: dict[Connection, list[Event]] = {}
        for event in events:
            groups.setdefault(client.request_conn(event.job_id), []).append(event)
        return groups

    async def _emit(self, conn: Connection, events: list[Event], refused: set[str], finished: list[str]) -> None:
        link = await conn.connect()
        started = time.perf_counter()
        known = self._served(link)
        single, steps = _split(events, known)
        pack = self._packer.pack
        parts = [
            pack(job_id, event.attempt, event.seq + len(event.tokens), encode_event(event))
            for job_id, event in single.items()
        ]
        num_replies = 2 * len(single)
        for job_id, event in single.items():
            if not event.seq:
                self._begin(job_id)
        for step in steps:
            if step.is_first:
                self._begin(step.job_id)
            if step.frames:
                parts.append(step.append().packed)
            if step.end is not None:
                parts.append(step.finish(step.end, self._first.get(step.job_id, 0)).packed)
                self._packer.forget(step.job_id)
            num_replies += step.num_replies
        if not parts:
            return
        replies = await conn.execute(b"".join(parts), num_replies)
        self._redis.metrics.round_trip("emit", time.perf_counter() - started)
        at = 2 * len(single)
        if at and isinstance(replies[1], ReplyError):  # of all that are published: readers find it in the log, later
            self._redis.refusal("publish", replies[1])
        for (job_id, event), reply in zip(single.items(), replies[:at:2], strict=True):
            # None: the log does not exist, so Redis has lost the job. An error: `append` returns what it means.
            if type(reply) is not bytes and (reply is None or not await self._mend(_alone(event))):
                self._refuse(job_id, known, refused)
        for step in steps:
            outcome = _outcome(step, replies, at)
            at += step.num_replies
            if outcome == "refused" or (outcome == "unclear" and not await self._mend(step)):
                self._refuse(step.job_id, known, refused)
            elif step.end is not None:
                finished.append(step.job_id)
                self._forget(known, step.job_id)
            else:
                known.add(step.job_id)

    def _begin(self, job_id: str) -> None:
        """Note when a job had its first token: written to the store with its end."""
        clock = self._clocks.get(job_id)
        if clock is not None:
            self._first.setdefault(job_id, round(clock + time.monotonic() * 1000))

    def _refuse(self, job_id: str, known: set[str], refused: set[str]) -> None:
        self._redis.metrics.store_error("emit_refused")
        refused.add(job_id)
        self._packer.forget(job_id)
        self._forget(known, job_id)

    def _forget(self, known: set[str], job_id: str) -> None:
        known.discard(job_id)
        self._clocks.pop(job_id, None)
        self._first.pop(job_id, None)

    async def _mend(self, step: _Step) -> bool:
        """Append what is not there yet, then end. False if another attempt has the job, or the store has lost it."""
        self._redis.metrics.store_error("emit_repeated")
        if step.frames and not await self._is_ok("append", step, step.append()):
            return False
        if step.end is None:
            return True
        return await self._is_ok("finish", step, step.finish(step.end, self._first.get(step.job_id, 0)))

    async def _is_ok(self, verb: str, step: _Step, script: Command) -> bool:
        """Whether it was done. A key of the wrong type fails this job alone, at its next claim; other errors raise."""
        (reply,) = await self._redis.run_each(verb, [(keys.log(step.job_id), script)])
        if isinstance(reply, ReplyError) and not is_wrong_type(reply):
            raise Refused(f"Redis refused to {verb}: {reply}")
        return bool(reply == b"ok")

    def _drop(self, worker_id: str, job_ids: list[str]) -> None:
        """Not awaited: an id that stays on the list is claimed again, found done, and removed then."""
        pool = self._redis.pool
        drops = [scripts.drop(pool, worker_id, job_id).packed for job_id in job_ids]
        self._redis.conn(pool.queue).post(b"".join(drops), len(drops))


def _split(events: Iterable[Event], known: Collection[str]) -> tuple[dict[str, Tokens], list[_Step]]:
    """Of a step: the jobs with one frame of tokens and nothing else, on the connection that knows them; the others."""
    single: dict[str, Tokens] = {}
    others: dict[tuple[str, int], _Step] = {}
    apart: set[str] = set()  # the jobs of `others`
    for event in events:
        job_id = event.job_id
        if type(event) is Tokens and job_id not in single and job_id not in apart and job_id in known:
            if event.tokens:  # a frame without tokens is not written
                single[job_id] = event
            continue
        before = single.pop(job_id, None)
        apart.add(job_id)
        for one in (event,) if before is None else (before, event):
            step = others.setdefault((job_id, one.attempt), _Step(job_id, one.attempt))
            if not isinstance(one, Started | Tokens):
                step.end = one
            elif isinstance(one, Started) or one.tokens:
                step.frames.append((one, encode_event(one)))
    return single, [step for step in others.values() if step.num_replies]


def _alone(event: Tokens) -> _Step:
    step = _Step(event.job_id, event.attempt)
    step.frames.append((event, encode_event(event)))
    return step


def _outcome(step: _Step, replies: list[Reply], at: int) -> str:
    """The result of one job's scripts: `ok`, `refused`, or `unclear`."""
    if step.frames:
        if replies[at] != b"ok":
            return "refused" if isinstance(replies[at], bytes) else "unclear"
        at += 1
    if step.end is None or replies[at] == b"ok":
        return "ok"
    return "refused" if replies[at] == b"refused" else "unclear"
