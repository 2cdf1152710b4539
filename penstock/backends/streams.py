"""A batch for backends that know only single answers: streams of text side by side, merged into events.

Each job runs in a task of its own; their events meet in one bounded funnel, so a consumer that stands still holds
every stream back. An exception becomes that job's `Failed`. Knows nothing of what produces the text.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from penstock.backends.stop import StopMatcher
from penstock.errors import BackendError, PenstockError, WorkerLost
from penstock.event import Done, Event, Failed, FinishReason, Tokens, Usage
from penstock.job import Batch, Claim, Job
from penstock.rich_token import RichToken, Token

logger = logging.getLogger("penstock.backends")

MAX_WAITING = 256
_NOTHING = RichToken()


@dataclass(slots=True, frozen=True)
class Finish:
    """The last item of a stream whose engine ends by itself.

    `usage`: as the engine counted; without it the tokens are counted here.
    """

    reason: FinishReason
    usage: Usage | None = None


OpenStream = Callable[[Claim], AsyncIterator[Token | Finish]]
CountTokens = Callable[[Job], int]


async def side_by_side(
    batch: Batch, open_stream: OpenStream, count: CountTokens, resumes: bool, ends_itself: bool = False
) -> AsyncIterator[Event]:
    """Run every claim's stream and yield the events of all, in the order in which they come."""
    funnel = _Funnel(len(batch))
    tasks = [
        asyncio.create_task(_run(claim, open_stream, count, resumes, ends_itself, funnel)) for claim in batch.claims
    ]
    for claim, task in zip(batch.claims, tasks, strict=True):
        task.add_done_callback(funnel.leave)
        claim.on_cancel(partial(_stop, task))
    try:
        while events := await funnel.take():
            for event in events:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def failure(error: Exception, claim: Claim) -> PenstockError:
    """What the client may read of an exception in a backend; the log names its source, never the prompt."""
    if isinstance(error, PenstockError):
        return error
    where = traceback.extract_tb(error.__traceback__)[-1:]
    logger.error(
        "backend failed: %s at %s",
        type(error).__name__,
        ", ".join(f"{frame.filename}:{frame.lineno}" for frame in where) or "an unknown place",
        extra={"request_id": claim.job.id, "model": claim.job.model, "error": type(error).__name__},
    )
    # The message of an exception may contain the prompt: logged at level debug only.
    logger.debug("backend failed", exc_info=error, extra={"request_id": claim.job.id})
    return BackendError(f"The model's backend failed ({type(error).__name__}).")


def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()


class _Funnel:
    """Where the events of many tasks meet. Holds at most `MAX_WAITING`, and one more for each task."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._events: list[Event] = []
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, event: Event) -> None:
        self._events.append(event)
        self._filled.set()
        if len(self._events) >= MAX_WAITING:
            self._room.clear()
            await self._room.wait()

    def leave(self, _task: asyncio.Task[None]) -> None:
        self._num_sources -= 1
        self._filled.set()

    async def take(self) -> list[Event]:
        """Wait for events and return all that are there; an empty list once every source has left."""
        while not self._events and self._num_sources:
            self._filled.clear()
            await self._filled.wait()
        events, self._events = self._events, []
        self._room.set()
        return events


async def _run(
    claim: Claim, open_stream: OpenStream, count: CountTokens, resumes: bool, ends_itself: bool, funnel: _Funnel
) -> None:
    """One job from its first to its last event."""
    sent = _Sent(claim)
    try:
        if claim.cancelled is not None:
            return
        finish = await _relay(claim, open_stream, resumes, ends_itself, sent, funnel)
        num = 0 if claim.job.inputs else sent.seq + len(sent.last)
        usage = finish.usage or Usage(count(claim.job), num)
        done = Done(claim.job.id, claim.attempt, sent.seq, tokens=sent.last, finish_reason=finish.reason, usage=usage)
        await funnel.put(done)
    except Exception as error:
        if claim.cancelled is None:
            await funnel.put(Failed.of(claim.job.id, claim.attempt, sent.seq, failure(error, claim)))


class _Sent:
    """How far a job has come: the next `seq`, and the tokens that go with the end."""

    __slots__ = ("last", "seq")

    def __init__(self, claim: Claim) -> None:
        self.seq = len(claim.tokens)
        self.last: tuple[Token, ...] = ()


async def _relay(
    claim: Claim, open_stream: OpenStream, resumes: bool, ends_itself: bool, sent: _Sent, funnel: _Funnel
) -> Finish:
    """Put the tokens of one stream until it ends, has enough, or meets a stop string; return which."""
    job, num = claim.job, len(claim.tokens)
    ends_itself = ends_itself or bool(job.inputs)
    if num >= job.sampling.max_tokens:
        return Finish("length")
    if num and not resumes and not job.inputs:
        raise WorkerLost("Its worker died, and this model's backend cannot continue an answer that has begun.")
    matcher = StopMatcher(() if ends_itself else job.sampling.stop)
    stream = open_stream(claim)
    try:
        async for token in stream:
            if isinstance(token, Finish):
                return token
            if not isinstance(token, str | RichToken):
                raise TypeError(f"a backend's stream yields str or RichToken, not {type(token).__name__}")
            if not token or token == _NOTHING:
                continue
            num += 1
            released, is_stopped = matcher.push(token)
            if is_stopped or (num >= job.sampling.max_tokens and not ends_itself):
                sent.last = (*released, *matcher.flush())
                return Finish("stop" if is_stopped else "length")
            if released:
                await funnel.put(Tokens(job.id, claim.attempt, sent.seq, tokens=tuple(released)))
                sent.seq += len(released)
        if ends_itself:
            raise BackendError("The model's backend ended its stream without saying why.")
        sent.last = tuple(matcher.flush())
        return Finish("stop")
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()
