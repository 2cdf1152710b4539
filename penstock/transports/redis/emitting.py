"""emit: one step's events to their logs and channels, in one pipeline and one round trip.

A job with one frame in the step (nearly always) takes the fast way, XADD and PUBLISH; the order of its stream is the
fence. Several frames of one job go through a script, which cannot leave a hole between them, and so does a job's first
frame on another connection than that of its claim: the server behind it may have an older log, and XADD would not
mind. A refused XADD means one of three things (a higher attempt; this very frame is there already; no memory), and
`append.lua` tells which. Knows nothing of leases and queues, but that what is finished leaves the worker's list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from penstock.event import Event, Started, Terminal, Tokens
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.connection import Connection
from penstock.transports.redis.frames import FramePacker
from penstock.transports.redis.link import Link, Reply
from penstock.transports.redis.store import Store
from penstock.wire import encode_event

_MAX_KNOWN = 8192


class _Step:
    """One attempt's share of a step: its frames in order, and its end."""

    __slots__ = ("attempt", "end", "frames", "is_known", "job_id")

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.is_known = False
        self.frames: list[tuple[Started | Tokens, bytes]] = []
        self.end: Terminal | None = None

    @property
    def is_fast(self) -> bool:
        return self.is_known and len(self.frames) == 1

    @property
    def is_first(self) -> bool:
        """It holds the job's first token."""
        event = self.frames[0][0] if self.frames else self.end
        return event is not None and event.seq == 0 and event.end > 0

    @property
    def num_replies(self) -> int:
        return (2 if self.is_fast else bool(self.frames)) + (self.end is not None)

    def append(self) -> scripts.Command:
        frames = ((event.seq, event.end, frame) for event, frame in self.frames)
        return scripts.append(self.job_id, self.attempt, frames)

    def finish(self, end: Terminal, first_ms: int) -> scripts.Command:
        return scripts.finish(self.job_id, self.attempt, end.seq, encode_event(end), first_ms)


class Emitter:
    """Emits for the workers of one transport."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packer = FramePacker()
        self._known: WeakKeyDictionary[Link, set[str]] = WeakKeyDictionary()  # the jobs that each link has served
        self._clocks: dict[str, float] = {}  # of each job: Redis' clock less ours at its claim, ms
        self._first: dict[str, int] = {}  # when it had its first token, on Redis' clock

    def claimed(self, job_id: str, now_ms: int) -> None:
        """A worker has just claimed this job, when Redis' clock said `now_ms`."""
        if len(self._clocks) >= _MAX_KNOWN:  # jobs that left without an end
            self._clocks.clear()
            self._first.clear()
        self._clocks[job_id] = now_ms - time.monotonic() * 1000
        link = self._store.request_conn(job_id).link
        if link is not None:
            self._served(link).add(job_id)

    def _served(self, link: Link) -> set[str]:
        known = self._known.setdefault(link, set())
        if len(known) >= _MAX_KNOWN:
            known.clear()
        return known

    async def emit(self, worker_id: str, events: Iterable[Event]) -> set[str]:
        steps = _steps_of(events)
        refused: set[str] = set()
        groups: dict[Connection, list[_Step]] = {}
        for step in steps:
            groups.setdefault(self._store.request_conn(step.job_id), []).append(step)
        if len(groups) == 1:
            await self._emit(*groups.popitem(), refused)
        else:  # on a cluster: side by side, and what one node refuses is no reason not to ask the next
            emitting = (self._emit(conn, group, refused) for conn, group in groups.items())
            for error in await asyncio.gather(*emitting, return_exceptions=True):
                if error is not None:
                    raise error
        finished = [step.job_id for step in steps if step.end is not None and step.job_id not in refused]
        if finished:
            self._drop(worker_id, finished)
        return refused

    async def _emit(self, conn: Connection, steps: list[_Step], refused: set[str]) -> None:
        link = await conn.connect()
        started = time.perf_counter()
        known = self._served(link)
        parts: list[bytes] = []
        num_replies = 0
        for step in steps:
            step.is_known = step.job_id in known
            if step.is_first:
                self._begin(step)
            if step.is_fast:
                event, frame = step.frames[0]
                parts.append(self._packer.pack(step.job_id, event.attempt, event.end, frame))
            elif step.frames:
                parts.append(step.append().packed)
            if step.end is not None:
                parts.append(step.finish(step.end, self._first.get(step.job_id, 0)).packed)
                self._packer.forget(step.job_id)
            num_replies += step.num_replies
        replies = await conn.execute(b"".join(parts), num_replies)
        self._store.metrics.round_trip("emit", time.perf_counter() - started)
        at = 0
        for step in steps:
            outcome = _outcome(step, replies, at)
            at += step.num_replies
            if outcome == "refused" or (outcome == "unclear" and not await self._mend(step)):
                refused.add(step.job_id)
                self._packer.forget(step.job_id)
                self._forget(known, step.job_id)
            elif step.end is not None:
                self._forget(known, step.job_id)
            elif not step.is_known:
                known.add(step.job_id)

    def _begin(self, step: _Step) -> None:
        """Note when a job had its first token: its end tells it to the store."""
        clock = self._clocks.get(step.job_id)
        if clock is not None:
            self._first.setdefault(step.job_id, round(clock + time.monotonic() * 1000))

    def _forget(self, known: set[str], job_id: str) -> None:
        known.discard(job_id)
        self._clocks.pop(job_id, None)
        self._first.pop(job_id, None)

    async def _mend(self, step: _Step) -> bool:
        """Again, with care: appended unless it is there, then ended. False if another attempt has the job, or none."""
        self._store.metrics.store_error("emit_repeated")
        key = keys.log(step.job_id)
        if step.frames and await self._store.ask("append", key, step.append()) != b"ok":
            return False
        if step.end is None:
            return True
        finish = step.finish(step.end, self._first.get(step.job_id, 0))
        return bool(await self._store.ask("finish", key, finish) == b"ok")

    def _drop(self, worker_id: str, job_ids: list[str]) -> None:
        """Not awaited: an id that stays on the list is claimed again, found done, and removed then."""
        pool = self._store.pool
        drops = [scripts.drop(pool, worker_id, job_id).packed for job_id in job_ids]
        self._store.conn(pool.queue).post(b"".join(drops), len(drops))


def _steps_of(events: Iterable[Event]) -> list[_Step]:
    steps: dict[tuple[str, int], _Step] = {}
    for event in events:
        key = (event.job_id, event.attempt)
        step = steps.get(key)
        if step is None:
            step = steps[key] = _Step(*key)
        if isinstance(event, Started | Tokens):
            if event.end > event.seq or isinstance(event, Started):  # no tokens, nothing to say
                step.frames.append((event, encode_event(event)))
        else:
            step.end = event
    return [step for step in steps.values() if step.frames or step.end is not None]


def _outcome(step: _Step, replies: list[Reply], at: int) -> str:
    """What Redis said to one job's commands: `ok`, `refused`, or `unclear`."""
    if step.is_fast:
        if replies[at] is None:  # no log: Redis has lost the job
            return "refused"
        if not isinstance(replies[at], bytes):
            return "unclear"
        at += 2
    elif step.frames:
        if replies[at] != b"ok":
            return "refused" if isinstance(replies[at], bytes) else "unclear"
        at += 1
    if step.end is None or replies[at] == b"ok":
        return "ok"
    return "refused" if replies[at] == b"refused" else "unclear"
