"""One request as its gateway sees it: what was relayed so far, who waits for more, and how it ended. Knows no store."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from penstock.errors import PenstockError
from penstock.event import Done, Event, Failed, Started, Terminal
from penstock.job import Job


class Meter(Protocol):
    """What measures one request: a fold over the same events (`metrics.Meter`)."""

    def observe(self, event: Event, now: float) -> None: ...

    def leave(self) -> None: ...


class Stream:
    """One request as this gateway sees it: the tokens relayed so far and, at last, how it ended.

    The reader takes what is new with `fresh()`, and waits with `changed()`. All times are monotonic seconds.
    """

    __slots__ = (
        "_waiter", "asked_at", "attempt", "deadline_at", "end", "ended_at", "first_token_at", "is_trusted", "job",
        "meter", "num_asked", "num_sent", "started_at", "submitted_at", "tokens", "verdict", "waiting_frames",
    )  # fmt: skip

    def __init__(self, job: Job, meter: Meter | None, now: float) -> None:
        self.job = job
        self.meter = meter
        self.tokens: list[str] = []
        self.num_sent = 0
        self.attempt = 0
        self.end: Terminal | None = None
        self.verdict: PenstockError | None = None
        self.submitted_at = self.asked_at = now
        self.started_at = self.first_token_at = self.ended_at = 0.0
        self.deadline_at = now + job.timeout_s
        self.is_trusted = True
        self.num_asked = 0
        self.waiting_frames: deque[Event] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_started(self) -> bool:
        """A worker has accepted the job at least once."""
        return self.started_at > 0.0

    @property
    def has_news(self) -> bool:
        return self.num_sent < len(self.tokens) or self.end is not None

    def fresh(self) -> tuple[int, list[str]]:
        """The tokens not taken yet, and the index of the first of them."""
        first = self.num_sent
        self.num_sent = len(self.tokens)
        return first, self.tokens[first:]

    async def changed(self, timeout_s: float | None = None) -> None:
        """Wait until something happens (an acceptance, tokens, the end) or the time has run out."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self.wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def accept(self, event: Event, now: float) -> None:
        """Fold in an event that is known to be the next of this stream."""
        self.asked_at = now
        self.num_asked = 0
        self.attempt = event.attempt
        if isinstance(event, Started):
            self.started_at = self.started_at or now
        else:
            new = event.tokens[len(self.tokens) - event.seq :]
            if new:
                self.first_token_at = self.first_token_at or now
                self.tokens.extend(new)
            if isinstance(event, Done | Failed):
                if self.verdict is not None and isinstance(event, Done) and event.finish_reason == "cancelled":
                    event = Failed.of(event.job_id, event.attempt, event.seq, self.verdict, event.tokens)
                self.end = event
                self.ended_at = now
        if self.meter is not None:
            self.meter.observe(event, now)
        self.wake()
