"""How a worker writes: group commit. The events of all batches are collected here and written one round trip at a time.

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
from penstock.transports.base import Transport
from penstock.worker.crash_points import Fault, no_fault
from penstock.worker.running_job import Lane

logger = logging.getLogger("penstock.worker")

MAX_PENDING = 32_768
WHOLE_TOKENS = 32
WHOLE_S = 0.25
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 0.5
LATE_S = 5.0


class Outbox:
    """`on_written(lane)`: the lane's end is in the log. `on_refused(lane)`: the store rejected its frame."""

    def __init__(
        self,
        transport: Transport,
        worker_id: str,
        on_written: Callable[[Lane], None],
        on_refused: Callable[[Lane], None],
        fault: Fault = no_fault,
    ) -> None:
        self._transport = transport
        self._worker_id = worker_id
        self._on_written = on_written
        self._on_refused = on_refused
        self._fault = fault
        self._num_pending = 0
        self._marked: list[Lane] = []
        self._held: set[Lane] = set()
        self._release_timer: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, lane: Lane, tokens: tuple[Token, ...]) -> None:
        """Add the next tokens of a lane."""
        pending = lane.pending
        pending += tokens
        self._num_pending += len(tokens)
        if lane.is_marked:
            return
        # The first tokens of an answer are always written at once: they are its time to first token.
        if lane.is_stream or len(pending) >= WHOLE_TOKENS or lane.num_sent == lane.num_given:
            self._mark(lane)
        elif lane not in self._held:
            self._held.add(lane)
            if self._release_timer is None:
                self._release_timer = asyncio.get_running_loop().call_later(WHOLE_S, self._release)

    def finish(self, lane: Lane, end: Terminal) -> None:
        """Add a lane's end; it is written with its last tokens."""
        lane.pending.extend(end.tokens)
        self._num_pending += len(end.tokens)
        lane.end = end
        self._mark(lane)

    def drop(self, lane: Lane) -> None:
        """The job is no longer this worker's: discard what is pending of it."""
        lane.is_dropped = True
        self._held.discard(lane)
        self._num_pending -= len(lane.pending)
        lane.pending = []

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
            lanes, events = self._collect()
            self._room.set()
            if lanes:
                await self._write(lanes, events)

    def _mark(self, lane: Lane) -> None:
        if not lane.is_marked:
            lane.is_marked = True
            self._held.discard(lane)
            self._marked.append(lane)
            self._idle.clear()
            self._filled.set()

    def _release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        for lane in list(self._held):
            self._mark(lane)

    def _collect(self) -> tuple[list[Lane], list[Event]]:
        """Take what is pending, as one frame for each lane."""
        marked, self._marked = self._marked, []
        lanes: list[Lane] = []
        events: list[Event] = []
        for lane in marked:
            lane.is_marked = False
            tokens, lane.pending = tuple(lane.pending), []
            self._num_pending -= len(tokens)
            if lane.is_dropped:
                continue
            lanes.append(lane)
            if lane.end is None:
                events.append(Tokens(lane.id, lane.attempt, lane.num_sent, tokens=tokens))
            else:
                events.append(_last(lane, lane.end, tokens))
            lane.num_sent += len(tokens)
        return lanes, events

    async def _write(self, lanes: list[Lane], events: list[Event]) -> None:
        has_end = any(lane.end is not None for lane in lanes)
        if has_end:
            self._fault("before_final")
        self._fault("mid_step")
        refused = await self._emit(lanes, events)
        self._fault("after_emit")
        if has_end:
            self._fault("after_final")
        if not (refused or has_end):
            return
        for lane, event in zip(lanes, events, strict=True):
            if lane.is_dropped:
                continue
            if refused and lane.id in refused:
                self._on_refused(lane)
            elif isinstance(event, Done | Failed):
                self._on_written(lane)

    async def _emit(self, lanes: list[Lane], events: list[Event]) -> set[str]:
        """Retry until the frames are written; a frame once tried is never changed, as it may have been stored."""
        retry_s, given_up = FIRST_RETRY_S, set[str]()
        while True:
            try:
                refused = await self._transport.emit(self._worker_id, events)
            except StoreUnavailable as error:
                if retry_s == FIRST_RETRY_S:
                    logger.warning("cannot write, will try again: %s", error.message)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
                # Past its deadline the store or a gateway ends a job; no client receives what is left of it here.
                now = time.monotonic()
                given_up |= {lane.id for lane in lanes if lane.claim.deadline_at + LATE_S < now}
                left = [(lane, event) for lane, event in zip(lanes, events, strict=True) if lane.id not in given_up]
                lanes = [lane for lane, _ in left if not lane.is_dropped]
                events = [event for lane, event in left if not lane.is_dropped]
                if not lanes:
                    return given_up
            else:
                if retry_s != FIRST_RETRY_S:
                    logger.info("can write again")
                return refused | given_up


def _last(lane: Lane, end: Terminal, tokens: tuple[Token, ...]) -> Terminal:
    """The end, with the tokens that have not been sent."""
    return end if lane.num_sent == end.seq else msgspec.structs.replace(end, seq=lane.num_sent, tokens=tokens)
