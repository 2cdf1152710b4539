"""What comes back: the streams that a gateway holds open, fed by the channel and mended from the log.

Pub/sub is the fast path and the log is the truth. A stream accepts a published event only if it is the next one of
the attempt it knows; at every gap, after every new subscription and after silence it reads its log instead. So a
lost publish is a delay, never a lost token, and a woken worker's late frames never show. Whole answers and streams
are the same `Stream`. Knows nothing of HTTP; rule numbers are those of `docs/protocol.md`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from penstock.errors import (
    DeadlineExceeded,
    InternalError,
    NoWorkers,
    PenstockError,
    QueueFull,
    StoreUnavailable,
)
from penstock.event import Event, Failed, Started, Tokens
from penstock.job import CancelReason, Job
from penstock.relay.stream import Meter, Stream
from penstock.transports.base import Record, Transport

logger = logging.getLogger(__name__)

RUNNING_SILENCE_S = 1.0
QUEUED_SILENCE_S = (2.0, 4.0, 5.0)
WATCH_S = 0.25
DELIVERED_RETENTION_S = 10.0
_MAX_WHILE_READING = 1024
_DEADLINE_SLACK_S = 5.0
_CANCEL_TRIES = 20


class Relay:
    """All open streams of one gateway. `deliver` and `distrust` are what its transport calls."""

    def __init__(
        self,
        gateway_id: str,
        transport: Transport,
        *,
        max_depth: int,
        no_worker_grace_s: float = 10.0,
        has_workers: Callable[[str], bool] = lambda model: True,
        on_log_read: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.gateway_id = gateway_id
        self._transport = transport
        self._max_depth = max_depth
        self._grace_s = no_worker_grace_s
        self._has_workers = has_workers
        self._on_log_read = on_log_read
        self._streams: dict[str, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    async def open(self, job: Job, meter: Meter | None = None) -> Stream:
        """Submit `job` and return its stream. Listening stands before speaking: it is known before it is pushed."""
        stream = Stream(job, meter, time.monotonic())
        self._streams[job.id] = stream
        try:
            await self._transport.submit(job, self.gateway_id, self._max_depth)
        except BaseException as error:
            del self._streams[job.id]
            if not isinstance(error, QueueFull):  # its outcome is unknown: it may wait there for nobody
                self._spawn(self._cancel(job.id, "client"))
            raise
        return stream

    def close(self, stream: Stream, *, is_delivered: bool) -> None:
        """The reader is done with it, or gone. What has not ended is cancelled."""
        if self._streams.pop(stream.job.id, None) is None:
            return
        if stream.end is None:
            if stream.meter is not None:
                stream.meter.leave()
            self._spawn(self._cancel(stream.job.id, "client"))
        elif is_delivered:
            self._spawn(self._retire(stream.job.id))

    def deliver(self, event: Event) -> None:
        """A published event. Only what is surely next is believed; all else is looked up in the log."""
        stream = self._streams.get(event.job_id)
        if stream is None or stream.end is not None or event.attempt < stream.attempt:
            return
        if stream.waiting_frames is not None:
            if len(stream.waiting_frames) < _MAX_WHILE_READING:
                stream.waiting_frames.append(event)
            return
        if not stream.is_trusted:
            self._ask(stream, "untrusted")
        elif event.attempt > stream.attempt and not isinstance(event, Started):
            self._ask(stream, "attempt")  # rule 4
        else:
            self._fold(stream, event)

    def distrust(self) -> None:
        """The subscription is a new one: frames may be missing from every stream (rule 4)."""
        for stream in self._streams.values():
            stream.is_trusted = False
            self._ask(stream, "subscription")

    async def watch(self) -> None:
        """Ask for streams that are silent, and end those whose time is up (rule 15). Runs for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for stream in list(self._streams.values()):
                self._look_at(stream, now)

    def fail_all(self, error: PenstockError) -> None:
        """Nothing more will come: end every stream here, in the open."""
        for stream in list(self._streams.values()):
            self._fail(stream, error)

    async def drain(self) -> None:
        """Wait for cancels and the like that are on their way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)

    # ── how a stream goes on ─────────────────────────────────────────────────────────────────────────────────────

    def _fold(self, stream: Stream, event: Event) -> None:
        """Fold an event of the attempt known, or the `Started` of a newer one."""
        have = len(stream.tokens)
        if event.seq > have:
            self._ask(stream, "gap")
        elif isinstance(event, Started) and event.seq < have:
            self._restore(stream, event.attempt)
        elif event.end > have or (event.end == have and not isinstance(event, Tokens)):
            stream.accept(event, time.monotonic())

    def _look_at(self, stream: Stream, now: float) -> None:
        if stream.end is not None:
            return
        if now >= stream.deadline_at:
            if now >= stream.deadline_at + _DEADLINE_SLACK_S:  # the store does not answer
                self._fail(stream, DeadlineExceeded("The request did not finish within its timeout_s."))
            elif stream.verdict is None:
                stream.verdict = DeadlineExceeded("The request did not finish within its timeout_s.")
                self._spawn(self._cancel(stream.job.id, "deadline"))
            return
        waited_s = 0.0 if stream.is_started or stream.verdict is not None else now - stream.submitted_at
        if waited_s >= self._grace_s and not self._has_workers(stream.job.model):
            stream.verdict = NoWorkers("No worker is there to run this.", retry_after_s=self._grace_s)
            self._spawn(self._cancel(stream.job.id, "client"))
        patience = RUNNING_SILENCE_S if stream.is_started else QUEUED_SILENCE_S[min(stream.num_asked, 2)]
        if now - stream.asked_at >= patience:
            stream.asked_at = now
            stream.num_asked += 1
            self._ask(stream, "silence")

    def _ask(self, stream: Stream, reason: str) -> None:
        """Read this stream's log; frames that arrive meanwhile wait. One read at a time."""
        if stream.waiting_frames is None:
            stream.waiting_frames = deque()
            self._on_log_read(reason)
            self._spawn(self._mend(stream))

    async def _mend(self, stream: Stream) -> None:
        try:
            after = (stream.attempt, len(stream.tokens)) if stream.tokens else None
            record = await self._transport.read(stream.job.id, after)
            stream.is_trusted = True
            if record is None:
                await self._resubmit(stream)
            else:
                self._catch_up(stream, record)
        except StoreUnavailable:
            stream.is_trusted = False  # silence asks again
        finally:
            waiting, stream.waiting_frames = stream.waiting_frames or (), None
            for event in waiting:
                self.deliver(event)

    def _catch_up(self, stream: Stream, record: Record) -> None:
        for event in record.events:
            if stream.end is None and event.attempt >= stream.attempt and event.seq <= len(stream.tokens):
                self._fold(stream, event)
        if record.state == "done" and stream.end is None and self._streams.get(stream.job.id) is stream:
            self._fail(stream, InternalError("The end of this request is missing from its log."))

    async def _resubmit(self, stream: Stream) -> None:
        """The store has forgotten this request (rules 1, 5, 13): give it back what the client has."""
        if self._streams.get(stream.job.id) is not stream or stream.end is not None:
            return
        logger.warning("resubmitted", extra={"request_id": stream.job.id, "num_tokens": len(stream.tokens)})
        if stream.tokens:
            await self._transport.restore(stream.job, self.gateway_id, stream.tokens, stream.attempt)
        else:
            await self._transport.submit(stream.job, self.gateway_id, 0, floor=stream.attempt, front=True)

    def _restore(self, stream: Stream, short_attempt: int) -> None:
        """The log is behind the client: that attempt is ignored, and a new one goes on from what was relayed."""
        stream.attempt = short_attempt + 1
        self._spawn(self._restore_from(stream, short_attempt))

    async def _restore_from(self, stream: Stream, short_attempt: int) -> None:
        try:
            job, tokens = stream.job, list(stream.tokens)
            if not await self._transport.restore(job, self.gateway_id, tokens, short_attempt):
                self._ask(stream, "restore")
        except StoreUnavailable:
            stream.is_trusted = False

    def _fail(self, stream: Stream, error: PenstockError) -> None:
        if stream.end is None:
            failed = Failed.of(stream.job.id, stream.attempt, len(stream.tokens), error)
            stream.accept(failed, time.monotonic())

    # ── what runs beside ─────────────────────────────────────────────────────────────────────────────────────────

    async def _cancel(self, job_id: str, reason: CancelReason) -> None:
        for _ in range(_CANCEL_TRIES):
            try:
                await self._transport.cancel(job_id, reason, self.gateway_id)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)
        logger.warning("could not cancel; the worker will, when it renews", extra={"request_id": job_id})

    async def _retire(self, job_id: str) -> None:
        try:
            await self._transport.retire(job_id, DELIVERED_RETENTION_S)
        except StoreUnavailable:
            return  # it expires by itself, a little later

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the relay failed", exc_info=task.exception())
