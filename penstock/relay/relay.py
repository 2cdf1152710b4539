"""What comes back: the streams that a gateway holds open, fed by the channel and mended from the log.

Pub/sub is the fast path and the log is the truth: `mend.py` says what of the channel is believed. Whole answers and
streams are the same `Stream`, and a stream may have any number of readers, now or later: what happens when the last
one leaves is the job's `on_disconnect`. Knows nothing of HTTP; rule numbers are those of `docs/protocol.md`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from penstock.errors import DeadlineExceeded, NoWorkers, PenstockError, QueueFull, RequestPoisoned, StoreUnavailable
from penstock.event import Done, Event, Failed, Tokens
from penstock.job import CancelReason, Job
from penstock.relay.mend import Mender
from penstock.relay.stream import Meter, Reader, Stream, Turn
from penstock.transports.base import LEASE_S, TICK_S, Record, Transport

logger = logging.getLogger(__name__)

RUNNING_SILENCE_S = 1.0
QUEUED_SILENCE_S = (2.0, 4.0, 5.0)
STRANDED_S = LEASE_S + TICK_S
OVERTAKEN_S = 2.0
WATCH_S = 0.25
DELIVERED_RETENTION_S = 10.0
MAX_PER_S = 10  # of each kind of repair that asks the store to change something
_DEADLINE_SLACK_S = 5.0
_CANCEL_TRIES, _LEFT_S = 20, 5.0
_LATE = "The request did not finish within its timeout_s."


class Relay:
    """All open streams of one gateway. `deliver` and `distrust` are what its transport calls."""

    def __init__(
        self,
        gateway_id: str,
        transport: Transport,
        *,
        max_depth: int,
        no_worker_grace_s: float = 10.0,
        resume_window_s: float = 30.0,
        has_workers: Callable[[str], bool] = lambda model: True,
        is_live: Callable[[str], bool] = lambda worker_id: True,
        queue_depth: Callable[[], int] = lambda: 0,
        on_log_read: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.gateway_id = gateway_id
        self._transport = transport
        self._max_depth = max_depth
        self._grace_s = no_worker_grace_s
        self._resume_window_s = resume_window_s
        self._has_workers = has_workers
        self._is_live = is_live
        self._queue_depth = queue_depth
        self._mender = Mender(gateway_id, transport, self._ended, self._is_stranded, on_log_read)
        self._turn = Turn()
        self._streams: dict[str, Stream] = {}
        self._opening: dict[str, asyncio.Event] = {}
        self._left: OrderedDict[str, float] = OrderedDict()
        self._newest_started_at = 0.0
        self._budget: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    async def find(self, job_id: str) -> Stream | None:
        """The stream that is held here. One that is just being opened is waited for: it may yet come to nothing."""
        while (opening := self._opening.get(job_id)) is not None:
            await opening.wait()
        return self._streams.get(job_id)

    # ── readers come and go ──────────────────────────────────────────────────────────────────────────────────────

    async def open(self, job: Job, meter: Meter | None = None) -> Reader:
        """Submit `job`. Listening stands before speaking: its stream is known before it is pushed."""
        stream = Stream(job, meter, time.monotonic())
        reader = self.read(stream)
        try:
            with _Hold(self, stream):
                await self._transport.submit(job, self.gateway_id, self._max_depth)
        except BaseException as error:
            if not isinstance(error, QueueFull):  # its outcome is unknown: it may wait there for nobody
                self._mender.spawn(self._cancel(job.id, "client"))
            raise
        return reader

    async def attach(self, job_id: str, record: Record) -> Stream:
        """The stream of a request that this gateway may not hold yet: subscribe, adopt, read, in this order (rule 11).

        `record` is what the caller has read of it, to judge whether it may be seen.
        """
        held = await self.find(job_id)
        if held is not None:
            return held
        stream = _from_record(record)
        if record.state == "done":
            self._mender.catch_up(stream, record)
            return stream
        stream.is_followed = job_id.partition(".")[0] != self.gateway_id
        stream.is_trusted = False
        stream.left_at = time.monotonic()
        self._mender.catch_up(stream, record)  # so that only what came since is read once more
        with _Hold(self, stream):
            if stream.is_followed:
                await self._transport.follow(job_id)
            await self._transport.adopt(job_id, self.gateway_id)
        self._mender.ask(stream, "attach")
        return stream

    def read(self, stream: Stream, after: int = 0) -> Reader:
        """A reader of what comes after `after` tokens."""
        reader = Reader(stream, self._turn, after)
        stream.readers.append(reader)
        stream.left_at = 0.0
        return reader

    def leave(self, reader: Reader, *, is_delivered: bool) -> None:
        """The reader is done, or gone. Of several, only the last one's leaving counts. Safe to repeat."""
        stream = reader.stream
        if reader not in stream.readers:
            return
        stream.readers.remove(reader)
        if stream.readers:
            return
        if stream.is_ended:
            self._remove(stream)
            is_dead = isinstance(stream.end, Failed) and stream.end.code == RequestPoisoned.code
            if is_delivered and stream.job.retention_s is None and not is_dead:
                self._transport.retire(stream.job.id, DELIVERED_RETENTION_S)
        elif stream.job.on_disconnect == "cancel":
            self._abandon(stream)
        else:
            stream.left_at = time.monotonic()

    # ── what the transport calls ─────────────────────────────────────────────────────────────────────────────────

    def deliver(self, event: Event) -> None:
        """A published event."""
        stream = self._streams.get(event.job_id)
        if stream is not None:
            if type(event) is not Tokens or not stream.take(event):
                self._mender.see(stream, event)
        elif not isinstance(event, Done | Failed):
            self._disown(event.job_id)

    def distrust(self) -> None:
        """The subscription is a new one: frames may be missing from every stream (rule 4)."""
        for stream in self._streams.values():
            stream.is_trusted = False
            self._mender.ask(stream, "subscription")

    # ── what time brings ─────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """Ask for streams that are silent, and end those whose time is up (rule 15). Runs for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """One round of `watch`."""
        for stream in list(self._streams.values()):
            if stream.end is None:
                self._look_at(stream, now)
            if stream.is_started:
                self._newest_started_at = max(self._newest_started_at, stream.submitted_at)
        while self._left and next(iter(self._left.values())) < now - _LEFT_S:
            self._left.popitem(last=False)

    def fail_all(self, error: PenstockError) -> None:
        """Nothing more will come through this gateway: end every stream that is read here, in the open."""
        now = time.monotonic()
        for stream in list(self._streams.values()):
            stream.fail(error, now)

    async def drain(self) -> None:
        """Wait for cancels and the like that are on their way."""
        await self._mender.drain()

    def _look_at(self, stream: Stream, now: float) -> None:
        if now >= stream.deadline_at:
            self._end_late(stream, now)
            return
        is_left = stream.left_at and not stream.readers and stream.job.on_disconnect == "resume"
        if is_left and now - stream.left_at >= self._resume_window_s:
            self._abandon(stream)
            return
        waited_s = 0.0 if stream.is_started or stream.verdict is not None else now - stream.submitted_at
        if waited_s >= self._grace_s and not self._has_workers(stream.job.model):
            stream.verdict = NoWorkers("No worker is there to run this.", retry_after_s=self._grace_s)
            self._mender.spawn(self._cancel(stream.job.id, "client"))
        patience = RUNNING_SILENCE_S if stream.is_started else QUEUED_SILENCE_S[min(stream.num_asked, 2)]
        if now - stream.asked_at >= patience:
            stream.asked_at = now
            stream.num_asked += 1
            self._mender.ask(stream, "silence")

    def _end_late(self, stream: Stream, now: float) -> None:
        if now >= stream.deadline_at + _DEADLINE_SLACK_S:  # the store does not answer
            stream.fail(DeadlineExceeded(_LATE), now)
            if not stream.readers:
                self._remove(stream)
        elif stream.verdict is None:
            stream.verdict = DeadlineExceeded(_LATE)
            self._mender.spawn(self._cancel(stream.job.id, "deadline"))

    def _is_stranded(self, stream: Stream, record: Record) -> bool:
        """A queued job that is silent while the queue is empty, or while later ones have started (rule 8).

        Also one that is said to run at a worker that is not there: who took its id from the queue may have lost it,
        or a store that forgot everything does not know whose list to give back.
        """
        if time.monotonic() - stream.heard_at < STRANDED_S:
            return False
        if record.state == "running":
            return not self._is_live(record.worker) and self._may("ensure")
        is_overtaken = self._newest_started_at > stream.submitted_at + OVERTAKEN_S
        return (self._queue_depth() == 0 or is_overtaken) and self._may("ensure")

    # ── how streams come and go ──────────────────────────────────────────────────────────────────────────────────

    def _ended(self, stream: Stream) -> None:
        if not stream.readers:
            self._remove(stream)

    def _abandon(self, stream: Stream) -> None:
        """Nobody reads it and nobody will: cancel it, unless another gateway has readers."""
        self._remove(stream)
        if stream.meter is not None:
            stream.meter.leave()
        self._mender.spawn(self._cancel(stream.job.id, "client"))

    def _remove(self, stream: Stream) -> None:
        if self._streams.pop(stream.job.id, None) is not None and stream.is_followed:
            self._mender.spawn(self._unfollow(stream.job.id))

    def _disown(self, job_id: str) -> None:
        """A frame of a request that nobody here wants: its worker works for nobody (rule 18)."""
        is_ours = job_id.partition(".")[0] == self.gateway_id
        if is_ours and job_id not in self._left and self._may("disown"):
            self._mender.spawn(self._cancel(job_id, "client"))

    def _may(self, kind: str) -> bool:
        """At most `MAX_PER_S` repairs of a kind in a second."""
        second = int(time.monotonic())
        began, used = self._budget.get(kind, (second, 0))
        used = used if began == second else 0
        self._budget[kind] = (second, used + 1)
        return used < MAX_PER_S

    async def _cancel(self, job_id: str, reason: CancelReason) -> None:
        self._left[job_id] = time.monotonic()
        for _ in range(_CANCEL_TRIES):
            try:
                await self._transport.cancel(job_id, reason, self.gateway_id)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)
        logger.warning("could not cancel; the worker will, when it renews", extra={"request_id": job_id})

    async def _unfollow(self, job_id: str) -> None:
        try:
            await self._transport.unfollow(job_id)
        except StoreUnavailable:
            return  # a new subscription does not ask for it again


class _Hold:
    """Around what opens a stream: it is heard from the start, and read by others once the block has gone well."""

    __slots__ = ("_opened", "_relay", "_stream")

    def __init__(self, relay: Relay, stream: Stream) -> None:
        self._relay, self._stream, self._opened = relay, stream, asyncio.Event()
        relay._streams[stream.job.id], relay._opening[stream.job.id] = stream, self._opened

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None:
            self._relay._remove(self._stream)
        del self._relay._opening[self._stream.job.id]
        self._opened.set()


def _from_record(record: Record) -> Stream:
    """A stream as the store knows it; its times on this process' clock."""
    shift = time.monotonic() - record.now
    stream = Stream(record.job, None, record.created_at + shift)
    stream.deadline_at = record.deadline_at + shift
    stream.heard_at = stream.asked_at = record.now + shift
    stream.started_at = record.started_at + shift if record.started_at else 0.0
    return stream
