"""One request as its gateway sees it: what was relayed so far, who reads it, and how it ended. Knows no store."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from penstock.errors import PenstockError
from penstock.event import Done, Event, Failed, Started, Terminal, Tokens
from penstock.job import Job
from penstock.rich_token import Token
from penstock.transports.base import EndReason
from penstock.transports.quota import booked_tokens

MAX_SERVED = 32


class StreamMeter(Protocol):
    """Measures one request: a fold over the same events (`metrics.Meter`)."""

    def observe(self, event: Event, now: float) -> None: ...

    def leave(self) -> None: ...

    def drop(self) -> None: ...


class RelayStream:
    """The tokens relayed so far and, at last, the end. Any number of `Reader`s; all times are monotonic seconds.

    `is_ended`: the store has recorded the end. `end` can also be set locally, for example at shutdown.
    `verdict`: the error to end in when a cancellation of ours comes back. `followed`: another gateway made the id.
    `cancel`: the reason with which the store was asked to end it, which the store may lose.
    `is_read`: a client may have a token from here, so none is dropped any more. `job.stream` is set before that, so
    that a store that is given the request back knows it too.
    `num_booked`: the tokens of its answer that are booked for its caller.
    """

    __slots__ = (
        "asked_at", "attempt", "cancel", "deadline_at", "end", "ended_at", "first_token_at", "heard_at", "is_ended",
        "is_followed", "is_read", "is_restoring", "is_trusted", "job", "left_at", "meter", "num_asked", "num_booked",
        "readers",
        "started_at", "submitted_at", "tokens", "verdict", "waiting_frames",
    )  # fmt: skip

    def __init__(self, job: Job, meter: StreamMeter | None, now: float) -> None:
        self.job = job
        self.meter = meter
        self.tokens: list[Token] = []
        self.attempt = 0
        self.end: Terminal | None = None
        self.is_ended = False
        self.is_followed = self.is_restoring = False
        self.is_read = job.stream
        self.verdict: PenstockError | None = None
        self.cancel: EndReason | None = None
        self.submitted_at = self.heard_at = self.asked_at = now
        self.started_at = self.first_token_at = self.ended_at = self.left_at = 0.0
        self.deadline_at = now + job.timeout_s
        self.is_trusted = True
        self.num_asked = 0
        self.num_booked = booked_tokens(job)
        self.waiting_frames: deque[Event] | None = None
        self.readers: list[Reader] = []

    @property
    def is_started(self) -> bool:
        """A worker has accepted the job at least once."""
        return self.started_at > 0.0

    def take(self, event: Tokens) -> bool:
        """Fold in the usual tokens, which are surely next, and return True; else do nothing and return False.

        Per token; the slow form is `Repairer.on_event`, which handles every event. Its checks stand here again, as to
        share them would cost a call. tests/unit/gateway/relay/test_stream.py holds the two equal.
        """
        tokens = self.tokens
        if (
            event.seq != len(tokens)
            or event.attempt != self.attempt
            or not self.is_trusted
            or self.waiting_frames is not None
            or self.end is not None
            or not tokens  # the first ones are news in more ways than one
        ):
            return False
        self.heard_at = self.asked_at = now = time.monotonic()
        self.num_asked = 0
        tokens.extend(event.tokens)
        if self.meter is not None:
            self.meter.observe(event, now)
        for reader in self.readers:
            if not reader.is_for_end:
                reader.wake()
        return True

    def accept(self, event: Event, now: float) -> None:
        """Fold in an event that is known to be the next of this stream."""
        self.heard_at = self.asked_at = now
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
                if self.verdict is not None and _is_ours(event, self.verdict):
                    event = Failed.of(event.job_id, event.attempt, event.seq, self.verdict, event.tokens)
                self.end = event
                self.ended_at = self.ended_at or now
                self.is_ended = True
        if self.meter is not None:
            self.meter.observe(event, now)
        if self.end is not None or self.tokens:  # readers are not woken for `Started`
            for reader in self.readers:
                if self.end is not None or not reader.is_for_end:
                    reader.wake()

    def drop(self, num: int) -> None:
        """A new attempt has begun behind `num` tokens: those after them are void, and no client has one."""
        del self.tokens[num:]
        if not num:
            self.first_token_at = 0.0

    def fail(self, error: PenstockError, now: float) -> None:
        """Fail the stream locally; the store is not updated."""
        if self.end is None:
            self.end = Failed.of(self.job.id, self.attempt, len(self.tokens), error)
            self.ended_at = now
            if self.meter is not None:
                self.meter.observe(self.end, now)
            for reader in self.readers:
                reader.wake()


def _is_ours(end: Terminal, verdict: PenstockError) -> bool:
    """Whether this end is the result of the cancellation that this gateway requested with `verdict`."""
    return end.code == verdict.code if isinstance(end, Failed) else end.finish_reason == "cancelled"


class Turn:
    """Readers with news, each served once after this turn of the event loop: what comes until then is joined.

    One of these for all streams costs one callback a turn, where a task for each would cost a wake-up a token.
    """

    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready: dict[Reader, None] = {}

    def serve(self) -> None:
        """At most `MAX_SERVED` of them: what has just come, a new request say, need not wait for the clients of all."""
        ready: Iterable[Reader] = self.ready
        if len(self.ready) > MAX_SERVED:
            asyncio.get_running_loop().call_soon(self.serve)
            ready = list(islice(ready, MAX_SERVED))
            for reader in ready:
                del self.ready[reader]
        else:
            self.ready = {}
        for reader in ready:
            reader.serve()


class Reader:
    """One client's place in a stream: `fresh()` returns what is new, `wait_changed` and `run_push` wait for it.

    `is_for_end`: it waits for the whole answer, and need not be woken for a part of it. `index`: its number among the
    readers of one answer.
    """

    __slots__ = ("_push", "_turn", "_waiter", "index", "is_for_end", "num_sent", "stream")

    def __init__(self, stream: RelayStream, turn: Turn, num_sent: int = 0) -> None:
        self.stream = stream
        self.num_sent = num_sent
        self.index = 0
        self.is_for_end = False
        self._turn = turn
        self._waiter: asyncio.Future[None] | None = None
        self._push: Callable[[Reader], bool] | None = None

    @property
    def has_news(self) -> bool:
        return self.num_sent < len(self.stream.tokens) or self.stream.end is not None

    def fresh(self, limit: int | None = None) -> tuple[int, list[Token]]:
        """The tokens not taken yet, at most `limit` of them, and the index of the first."""
        first = self.num_sent
        tokens = self.stream.tokens[first : None if limit is None else first + limit]
        self.num_sent = first + len(tokens)
        return first, tokens

    def serve(self) -> None:
        """Call `push`, if nothing has ended that in the meantime."""
        if self._push is None or self._waiter is None or self._waiter.done():
            return
        try:
            if self._push(self):
                return
            self._waiter.set_result(None)
        except Exception as error:
            self._waiter.set_exception(error)  # it is the waiting task's to deal with
        self._push = None  # what comes before the task runs waits for it

    def wake(self) -> None:
        """Let the task that waits for this reader look again."""
        if self._push is not None:
            ready = self._turn.ready
            if not ready:
                asyncio.get_running_loop().call_soon(self._turn.serve)
            ready[self] = None
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def wait_changed(readers: Sequence[Reader], timeout_s: float | None = None) -> None:
    """Wait until something happens to one of them (tokens, the end, a `wake`) or the time has run out."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    for reader in readers:
        reader._waiter = waiter
    timer = None if timeout_s is None else loop.call_later(timeout_s, readers[0].wake)
    try:
        await waiter
    finally:
        for reader in readers:
            reader._waiter = None
        if timer is not None:
            timer.cancel()


async def run_push(readers: Sequence[Reader], push: Callable[[Reader], bool]) -> None:
    """Have `push(reader)` called for each whenever something happens to it, until one of these calls returns False.

    At most once a turn of the loop for each reader. Nothing is woken meanwhile. What `push` raises is raised here.
    """
    waiter = asyncio.get_running_loop().create_future()
    for reader in readers:
        reader._waiter, reader._push = waiter, push
    try:
        await waiter
    finally:
        for reader in readers:
            reader._waiter = reader._push = None
