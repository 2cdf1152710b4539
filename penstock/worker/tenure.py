"""A worker's work under one lease: claim, gather, generate, emit, finish. Knows no engine and no store by name.

`_intake` claims ids for free sequence slots, `_gather` starts batches, each batch generates in a task of its own, the
outbox writes what all of them yield. A tenure lasts as long as its lease: a worker whose lease is lost drops the tenure
and begins another one. A *sequence slot* is room for one job, a *batch slot* room for one batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from penstock.backends.base import Backend, engines_of
from penstock.errors import (
    DeadlineExceeded,
    ModelNotFound,
    PenstockError,
    StoreUnavailable,
    UnsupportedParameter,
    UnsupportedTask,
    WorkerLost,
)
from penstock.event import Done, Failed, Terminal
from penstock.fleet import WorkerInfo
from penstock.job import Batch, CancelReason, Claim, Job
from penstock.metrics import Metrics
from penstock.transports.base import LATE, LEASE_S, Renewal, WorkerStore
from penstock.worker.batcher import Batcher
from penstock.worker.batches import Runs, cancel_all
from penstock.worker.crash_points import CrashPoints, no_crash_points
from penstock.worker.outbox import Outbox
from penstock.worker.report import report
from penstock.worker.running_job import RunningJob
from penstock.worker.suspects import Suspects

logger = logging.getLogger("penstock.worker")

WAIT_S = 1.0
RETRY_S = 0.1
GIVE_BACK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A worker's sizes and times; the names are those of the settings."""

    max_batch_size: int = 64
    max_batches: int = 4
    window_s: float = 0.010
    closes_early: bool = True
    drain_s: float = 30.0

    @property
    def num_slots(self) -> int:
        return self.max_batch_size * self.max_batches


class Tenure:
    """Run it once; it returns when it was stopped and everything is handed back, or when its lease `is_lost`."""

    def __init__(
        self,
        store: WorkerStore,
        backends: Mapping[str, Backend],
        info: WorkerInfo,
        limits: Limits,
        metrics: Metrics | None = None,
        crash_points: CrashPoints = no_crash_points,
    ) -> None:
        self.id = info.id
        self._store = store
        self._backends = backends
        self._info = info
        self._limits = limits
        self._metrics = metrics
        if metrics is not None:
            metrics.know(backends)
        self._crash_point = crash_points
        continuous = [model for model, backend in backends.items() if backend.capabilities.continuous]
        num_batch_slots = limits.max_batches if limits.closes_early else 0
        self._batcher = Batcher(
            limits.max_batch_size, limits.window_s, continuous=continuous, num_batch_slots=num_batch_slots
        )
        self._outbox = Outbox(store, info.id, self._written, self._refused, crash_points)
        self._jobs: dict[str, RunningJob] = {}  # every job in this worker's list that it has claimed, oldest first
        self._runs = Runs(backends, limits.max_batches, self._outbox, self._ended, self._ran)
        self._suspects = Suspects(limits.max_batch_size)
        self._is_stopping = False
        self._has_strays = False
        self._claimed_again: set[str] = set()
        self._renewed_at = time.monotonic()
        self._freed = asyncio.Event()
        self._came = asyncio.Event()
        self._over = asyncio.Event()
        self._lost = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    # ── the life of a tenure ──────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Run until stopped or lost. Raises what a bug raised in a loop: without the loop no job would be answered."""
        intake = asyncio.create_task(self._intake(), name="intake")
        loops = {
            asyncio.create_task(self._gather(), name="gather"),
            asyncio.create_task(self._outbox.run(), name="outbox"),
        }
        over = asyncio.create_task(self._over.wait(), name="over")
        try:
            done, _ = await asyncio.wait({over, intake, *loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {over}:
                task.result()
            if not self._lost.is_set():
                await self._drain(intake)
        finally:
            self._is_stopping = True
            self._freed.set()
            await cancel_all({over, *loops, *self._runs.tasks()})
            for job in list(self._jobs.values()):
                self._forget(job)
            await intake  # never cancelled: its blocking wait may just be moving an id to this worker

    def stop(self) -> None:
        """Claim no more; finish what can be finished within `drain_s`, hand back the rest. Again: hand back now."""
        if self._is_stopping:
            self._hurry.set()
        self._is_stopping = True
        self._freed.set()
        self._over.set()

    def lose(self) -> None:
        """The lease has lapsed: others may run what this tenure holds, so it must write nothing more."""
        self._lost.set()
        self._hurry.set()
        self._is_stopping = True
        for job in list(self._jobs.values()):
            self._drop(job)
        self._freed.set()
        self._over.set()

    # ── claim ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _intake(self) -> None:
        while not self._is_stopping:
            room, moved = self._room(), None
            if self._may_be_lost():
                self._freed.clear()
                await self._freed.wait()
                continue
            if room > 0:
                try:
                    moved = await self._store.wait(self.id, WAIT_S)
                except StoreUnavailable:
                    await asyncio.sleep(RETRY_S)
            elif not self._has_strays:
                self._freed.clear()
                await _set_within(self._freed, RETRY_S if self._suspects.is_trying else None)
                continue
            if self._lost.is_set():
                return
            try:
                await self._claim(0 if self._is_stopping else max(room, 0), moved)
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)

    async def _claim(self, room: int, moved: str | None) -> None:
        """The list, not a reply, is what a worker holds: claim every id in it that is not known here.

        The id that the blocking wait has `moved` is claimed while the list is still being read: mostly it is the only
        one, and its client waits for the first token.
        """
        self._has_strays = False
        if moved is None or moved in self._jobs:
            fresh = await self._take(room - 1)  # the blocking wait may have moved one already
            if not fresh and room == 1:
                fresh = await self._take(1)  # the blocking wait has moved none
            await self._enter(fresh)
            return
        taking = asyncio.create_task(self._take(room - 1))
        try:
            await self._enter([moved])
        finally:
            (taken,) = await asyncio.gather(taking, return_exceptions=True)
        if isinstance(taken, BaseException):
            raise taken
        await self._enter([job_id for job_id in taken if job_id != moved])

    async def _enter(self, fresh: list[str]) -> None:
        """Claim these, and let them wait for their batch."""
        if not fresh or self._lost.is_set():
            return
        if self._may_be_lost():
            self._has_strays = True
            return
        self._crash_point("after_pop")
        claims = await self._store.claim(self.id, fresh)
        self._crash_point("after_claim")
        if not self._is_stopping:
            claims, others = self._suspects.part(claims)
            await self._give_back(others)
            claims = await self._rerun(claims)
        if self._lost.is_set():
            return
        if self._is_stopping:
            await self._give_back(claims)
            return
        now = time.monotonic()
        for claim in claims:
            self._admit(claim, now)
        self._came.set()

    async def _rerun(self, claims: list[Claim]) -> list[Claim]:
        """The same claims. What cannot be continued here begins again, unless a client may have read some of it."""
        stuck = [claim for claim in claims if claim.tokens and self._is_stuck(claim)]
        if not stuck:
            return claims
        left = {claim.job.id: claim for claim in await self._store.rerun(self.id, stuck)}
        for claim in stuck:
            begun = left.get(claim.job.id)
            if begun is not None and begun is not claim:
                logger.info("run again", extra={"request_id": claim.job.id, "num_tokens": len(claim.tokens)})
                if self._metrics is not None:
                    self._metrics.rerun(claim.job.model)
        now = [left.get(claim.job.id) if claim in stuck else claim for claim in claims]
        return [claim for claim in now if claim is not None]

    def _is_stuck(self, claim: Claim) -> bool:
        backend = self._backends.get(claim.job.model)
        has_all = len(claim.tokens) >= claim.job.sampling.max_tokens  # only its end is missing
        return backend is not None and not has_all and not backend.can_continue(claim)

    def _may_be_lost(self) -> bool:
        """Whether the lease was not renewed for its whole length.

        Other workers may then count new claims as dead at once: a few workers that come back together would take a
        request from each other until it is poison.
        """
        return time.monotonic() - self._renewed_at > LEASE_S

    async def _take(self, want: int) -> list[str]:
        return [id for id in await self._store.take(self.id, max(0, want)) if id not in self._jobs]

    def _room(self) -> int:
        """Number of ids to take: at most the free sequence slots, and at most one batch ahead of the batch slots."""
        if self._suspects.is_trying:
            return 0
        free_slots = self._limits.num_slots - len(self._jobs)
        ahead = self._limits.max_batch_size * max(1, self._runs.num_free) - len(self._batcher)
        return min(free_slots, ahead)

    def _admit(self, claim: Claim, now: float) -> None:
        job = self._jobs[claim.job.id] = RunningJob(claim, now)
        claim.on_cancel(partial(self._cancelled, job))
        delay = claim.deadline_at - now
        self._suspects.add(job)
        if job.is_open:
            job.timer = asyncio.get_running_loop().call_later(delay, claim.cancel, "deadline")
            refusal = self._refusal(claim.job)
            if refusal is None:
                self._batcher.add(claim, job.claimed_at)
            else:
                self._finish(job, job.failed(refusal))

    def _refusal(self, job: Job) -> PenstockError | None:
        """The error if this worker cannot run `job`, else None. A gateway checks this against the workers that it saw;
        another producer may not check it."""
        backend = self._backends.get(job.model)
        if backend is None:
            return ModelNotFound("This worker does not serve the request's model.")
        if job.task and job.task not in backend.capabilities.tasks:
            return UnsupportedTask("The worker that took this request does not have its task.", param="model")
        accepts = backend.capabilities.accepts
        if job.has_token_ids and "token_ids" not in accepts:
            return UnsupportedParameter("The worker that took this request takes text, not token ids.")
        for name in job.sampling.named():
            if name not in accepts:
                return UnsupportedParameter(f"The worker that took this request does not support {name!r}.", param=name)
        return None

    # ── gather ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            now = time.monotonic()
            if not self._is_stopping:
                for batch in self._batcher.ready(now, self._runs.num_free):
                    self._start(batch, now)
            free = self._runs.num_free
            deadline = self._batcher.next_deadline(free) if free > 0 else None
            timer = None if deadline is None else loop.call_later(max(0.0, deadline - now), self._came.set)
            await self._came.wait()
            if timer is not None:
                timer.cancel()

    def _start(self, batch: Batch, now: float) -> None:
        jobs = {claim.job.id: self._jobs[claim.job.id] for claim in batch.claims}
        if self._metrics is not None:
            self._metrics.batch(batch.model, len(batch), now - min(job.claimed_at for job in jobs.values()))
        self._runs.start(batch, jobs, now)
        self._freed.set()

    def _ran(self) -> None:
        """A batch has ended: its batch slot is free."""
        self._freed.set()
        self._came.set()

    # ── emit, finish ─────────────────────────────────────────────────────────────────────────────────────────────

    def _ended(self, job: RunningJob, end: Terminal) -> None:
        """Its engine has ended a job. A whole answer that was lost in its middle is dropped once, and claimed again."""
        is_lost = isinstance(end, Failed) and end.code == WorkerLost.code and job.num > job.num_given
        if not is_lost or job.is_stream or self._is_stopping or job.id in self._claimed_again:
            self._finish(job, end)
            return
        self._claimed_again.add(job.id)
        self._drop(job)
        self._has_strays = True

    def _finish(self, job: RunningJob, end: Terminal) -> None:
        """End a job: its engine adds nothing more. Its sequence slot is free once the end is written."""
        job.shut()
        self._batcher.discard(job.id)
        self._outbox.finish(job, end)
        self._runs.leave(job)

    def _cancelled(self, job: RunningJob) -> None:
        """The job was cancelled: finish it without waiting for the engine."""
        if not job.is_open:
            return
        if job.claim.cancelled == "deadline":
            self._finish(job, job.failed(DeadlineExceeded(LATE)))
        else:
            end = Done(job.id, job.claim.attempt, job.num, finish_reason="cancelled", usage=self._runs.usage(job))
            self._finish(job, end)

    def _written(self, job: RunningJob) -> None:
        self._forget(job)
        if job.end is not None:
            report(job, job.end, self._metrics)

    def _refused(self, job: RunningJob) -> None:
        logger.info("the store refused a frame", extra={"request_id": job.id, "attempt": job.claim.attempt})
        self._drop(job)

    def _drop(self, job: RunningJob) -> None:
        """The job is no longer this worker's: write nothing more of it, and let the engine stop."""
        job.shut()
        self._batcher.discard(job.id)
        self._outbox.drop(job)
        job.claim.cancel("operator")
        self._forget(job)
        self._runs.leave(job)

    def _forget(self, job: RunningJob) -> None:
        job.shut()
        job.claim.unwatch()
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        self._freed.set()

    # ── drain: a hand-back, not a wait ───────────────────────────────────────────────────────────────────────────

    async def _drain(self, intake: asyncio.Task[None]) -> None:
        await self._give_back(self._batcher.drain())
        hurry = asyncio.create_task(self._hurry.wait())
        deadline = time.monotonic() + self._limits.drain_s
        while self._runs.tasks() and not self._hurry.is_set() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({hurry, *self._runs.tasks()}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        await cancel_all({hurry, *self._runs.tasks()})
        if self._lost.is_set():
            return
        await _within(GIVE_BACK_S, self._outbox.flushed())
        await self._give_back([job.claim for job in self._jobs.values() if job.is_open])
        await asyncio.wait({intake})
        await _within(GIVE_BACK_S, self._outbox.flushed())

    async def _give_back(self, claims: list[Claim]) -> None:
        """Oldest first. If the store stays unavailable, the lease lapses and other workers take the jobs: none lost."""
        jobs = [job for claim in claims if (job := self._jobs.get(claim.job.id)) is not None]
        for job in jobs:
            job.shut()
        deadline = time.monotonic() + GIVE_BACK_S
        while claims and not self._lost.is_set():
            try:
                await self._store.hand_back(self.id, claims)
                logger.info("handed back", extra={"jobs": len(claims)})
                break
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    logger.error("could not hand back %d jobs: %s", len(claims), error.message)
                    break
                await asyncio.sleep(RETRY_S)
        for job in jobs:
            self._forget(job)

    # ── for the lease ────────────────────────────────────────────────────────────────────────────────────────────

    def info(self) -> WorkerInfo:
        num_free = max(0, self._limits.num_slots - len(self._jobs))
        return msgspec.structs.replace(self._info, num_free=num_free, engines=engines_of(self._backends))

    def running(self) -> list[str]:
        return list(self._jobs)  # one step of the interpreter: safe from the lease's thread

    def marks(self) -> dict[int, int]:
        return self._runs.marks()

    def renewed(self, renewal: Renewal) -> None:
        if renewal.is_lost:
            logger.warning("the lease was lost", extra={"worker": self.id, "jobs": len(self._jobs)})
            self.lose()
            return
        was_unsure, self._renewed_at = self._may_be_lost(), time.monotonic()
        if was_unsure:
            self._freed.set()
        for job_id, reason in renewal.cancelled.items():
            self.cancel(job_id, reason)
        for job_id in renewal.gone:
            job = self._jobs.get(job_id)
            if job is not None and job.is_open:  # an end that is being written is answered by its own reply
                self._drop(job)
        self._claimed_again.intersection_update(renewal.held)
        if any(job_id not in self._jobs for job_id in renewal.held):
            self._has_strays = True
            self._freed.set()
        if self._metrics is not None:
            info = self.info()
            self._metrics.worker_slots(info.num_slots, info.num_free)

    def cancel(self, job_id: str, reason: CancelReason) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.claim.cancel(reason)


async def _set_within(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return  # the usual case: look again


async def _within(timeout_s: float, what: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(what, timeout_s)
    except TimeoutError:
        logger.error("the store did not take everything in %g s", timeout_s)
