"""How a worker writes: group commit. The events of all batches are collected, and written in one round trip at a time.

While one write is in flight the next collects: a job's tokens since then travel as one frame, and its end with its
last tokens. Bounded: when too much is pending, batches wait. When the store is unavailable, the same bytes are retried.
A whole-answer job's tokens are grouped further, as no client reads them one by one. Knows nothing of engines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from penstock.errors import StoreUnavailable
from penstock.event import Done, Event, Failed, Terminal, Tokens
from penstock.rich_token import Token
from penstock.transports.base import WorkerStore
from penstock.worker.crash_points import CrashPoints, no_crash_points
from penstock.worker.running_job import RunningJob

logger = logging.getLogger("penstock.worker")

MAX_PENDING = 32_768
WHOLE_TOKENS = 32
WHOLE_S = 0.25
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 0.5
LATE_S = 5.0


class Outbox:
    """`on_written(job)`: the job's end is in the log. `on_refused(job)`: the store rejected its frame."""

    def __init__(
        self,
        store: WorkerStore,
        worker_id: str,
        on_written: Callable[[RunningJob], None],
        on_refused: Callable[[RunningJob], None],
        crash_points: CrashPoints = no_crash_points,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._on_written = on_written
        self._on_refused = on_refused
        self._crash_point = crash_points
        self._num_pending = 0
        self._marked: list[RunningJob] = []
        self._held: set[RunningJob] = set()
        self._release_timer: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, job: RunningJob, tokens: tuple[Token, ...]) -> None:
        """Add the next tokens of a job."""
        pending = job.pending
        pending += tokens
        self._num_pending += len(tokens)
        if job.is_marked:
            return
        # The first tokens of an answer are always written at once: they are its time to first token.
        if job.is_stream or len(pending) >= WHOLE_TOKENS or job.num_sent == job.num_given:
            self._mark(job)
        elif job not in self._held:
            self._held.add(job)
            if self._release_timer is None:
                self._release_timer = asyncio.get_running_loop().call_later(WHOLE_S, self._release)

    def finish(self, job: RunningJob, end: Terminal) -> None:
        """Add a job's end; it is written with its last tokens."""
        job.pending.extend(end.tokens)
        self._num_pending += len(end.tokens)
        job.end = end
        self._mark(job)

    def drop(self, job: RunningJob) -> None:
        """The job is no longer this worker's: discard what is pending of it."""
        job.is_dropped = True
        self._held.discard(job)
        self._num_pending -= len(job.pending)
        job.pending = []

    @property
    def is_full(self) -> bool:
        return self._num_pending >= MAX_PENDING

    async def room(self) -> None:
        """Wait until there is room again."""
        while self.is_full:
            self._room.clear()
            self._release()
            await self._room.wait()

    async def flushed(self) -> None:
        """Wait until everything that was added is written."""
        self._release()
        await self._idle.wait()

    async def run(self) -> None:
        """Write, until cancelled."""
        while True:
            if not self._marked:
                self._idle.set()
                self._filled.clear()
                await self._filled.wait()
            jobs, events = self._collect()
            self._room.set()
            if jobs:
                await self._write(jobs, events)

    def _mark(self, job: RunningJob) -> None:
        if not job.is_marked:
            job.is_marked = True
            self._held.discard(job)
            self._marked.append(job)
            self._idle.clear()
            self._filled.set()

    def _release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        for job in list(self._held):
            self._mark(job)

    def _collect(self) -> tuple[list[RunningJob], list[Event]]:
        """Take what is pending, as one frame for each job."""
        marked, self._marked = self._marked, []
        jobs: list[RunningJob] = []
        events: list[Event] = []
        for job in marked:
            job.is_marked = False
            tokens, job.pending = tuple(job.pending), []
            self._num_pending -= len(tokens)
            if job.is_dropped:
                continue
            jobs.append(job)
            if job.end is None:
                events.append(Tokens(job.id, job.attempt, job.num_sent, tokens=tokens))
            else:
                events.append(_last(job, job.end, tokens))
            job.num_sent += len(tokens)
        return jobs, events

    async def _write(self, jobs: list[RunningJob], events: list[Event]) -> None:
        has_end = any(job.end is not None for job in jobs)
        if has_end:
            self._crash_point("before_final")
        self._crash_point("mid_step")
        refused = await self._emit(jobs, events)
        self._crash_point("after_emit")
        if has_end:
            self._crash_point("after_final")
        if not (refused or has_end):
            return
        for job, event in zip(jobs, events, strict=True):
            if job.is_dropped:
                continue
            if refused and job.id in refused:
                self._on_refused(job)
            elif isinstance(event, Done | Failed):
                self._on_written(job)

    async def _emit(self, jobs: list[RunningJob], events: list[Event]) -> set[str]:
        """Retry until the frames are written; a frame once tried is never changed, as it may have been stored."""
        retry_s, given_up = FIRST_RETRY_S, set[str]()
        while True:
            try:
                refused = await self._store.emit(self._worker_id, events)
            except StoreUnavailable as error:
                if retry_s == FIRST_RETRY_S:
                    logger.warning("cannot write, will try again: %s", error.message)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
                # Past its deadline the store or a gateway ends a job; no client receives what is left of it here.
                now = time.monotonic()
                given_up |= {job.id for job in jobs if job.claim.deadline_at + LATE_S < now}
                left = [(job, event) for job, event in zip(jobs, events, strict=True) if job.id not in given_up]
                jobs = [job for job, _ in left if not job.is_dropped]
                events = [event for job, event in left if not job.is_dropped]
                if not jobs:
                    return given_up
            else:
                if retry_s != FIRST_RETRY_S:
                    logger.info("can write again")
                return refused | given_up


def _last(job: RunningJob, end: Terminal, tokens: tuple[Token, ...]) -> Terminal:
    """The end, with the tokens that have not been sent."""
    return end if job.num_sent == end.seq else msgspec.structs.replace(end, seq=job.num_sent, tokens=tokens)
