"""A batch for backends that know only single answers: streams of text side by side, merged into events.

Each job runs in a task of its own; their events meet in one bounded funnel, so a consumer that pauses holds
every stream back. An exception becomes that job's `Failed`. Knows nothing of what produces the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from msgspec.structs import replace

from penstock.backends.finish import Finish, failure
from penstock.backends.stop import StopMatcher
from penstock.errors import BackendError, WorkerLost
from penstock.event import Done, Event, Failed, FinishReason, Tokens, Usage
from penstock.job import Batch, Claim, Job
from penstock.rich_token import RichToken, Token, ToolCall, call_id_of

MAX_WAITING = 256
_NOTHING = RichToken()


OpenStream = Callable[[Claim], AsyncIterator[Token | Finish]]
CountTokens = Callable[[Job], int]


async def side_by_side(
    batch: Batch, open_stream: OpenStream, count: CountTokens, resumes: bool, handles_stop: bool = False
) -> AsyncIterator[Event]:
    """Run every claim's stream and yield the events of all, in the order in which they come."""
    funnel = _Funnel(len(batch))
    tasks = [
        asyncio.create_task(_run(claim, open_stream, count, resumes, handles_stop, funnel)) for claim in batch.claims
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


def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()


class _Funnel:
    """A bounded queue for the events of many tasks. Holds at most `MAX_WAITING`, and one more for each task."""

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
    claim: Claim, open_stream: OpenStream, count: CountTokens, resumes: bool, handles_stop: bool, funnel: _Funnel
) -> None:
    """One job from its first to its last event."""
    sent = _Sent(claim)
    try:
        if claim.cancelled is not None:
            return
        finish = await _relay(claim, open_stream, resumes, handles_stop, sent, funnel)
        num = sent.seq + len(sent.last) if claim.job.generates else 0
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
    claim: Claim, open_stream: OpenStream, resumes: bool, handles_stop: bool, sent: _Sent, funnel: _Funnel
) -> Finish:
    """Put the tokens of one stream until it ends, has enough, or meets a stop string; return which."""
    job, num = claim.job, len(claim.tokens)
    handles_stop = handles_stop or not job.generates
    if num >= job.sampling.max_tokens and job.generates:
        return Finish("length")
    if num and not resumes and job.generates:
        raise WorkerLost("The request's worker died, and this model's backend cannot continue a begun answer.")
    matcher = StopMatcher(() if handles_stop else job.sampling.stop)
    stop: FinishReason = "stop"  # `tool_calls` once the answer has one: a client runs a tool only for that reason
    called = {call.index for each in claim.tokens if isinstance(each, RichToken) for call in each.tool_calls}
    stream = open_stream(claim)
    try:
        async for token in stream:
            if isinstance(token, Finish):
                return token if token.reason != "stop" or stop == "stop" else Finish(stop, token.usage)
            if not isinstance(token, str):
                if not isinstance(token, RichToken):
                    raise TypeError(f"a backend's stream yields str or RichToken, not {type(token).__name__}")
                if token.tool_calls:
                    stop = "tool_calls"
                    token = _with_ids(token, job.id, called)
            if not token or token == _NOTHING:
                continue
            num += 1
            released, is_stopped = matcher.push(token)
            if is_stopped or (num >= job.sampling.max_tokens and not handles_stop):
                sent.last = (*released, *matcher.flush())
                return Finish(stop if is_stopped else "length")
            if released:
                await funnel.put(Tokens(job.id, claim.attempt, sent.seq, tokens=tuple(released)))
                sent.seq += len(released)
        if handles_stop:
            raise BackendError("The model's backend ended its stream without a finish reason.")
        sent.last = tuple(matcher.flush())
        return Finish(stop)
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()


def _with_ids(token: RichToken, request_id: str, called: set[int]) -> RichToken:
    """The first part of each call gets an id where the backend gives none, so that the log has it. `called`: the calls
    that have begun.
    """
    calls: list[ToolCall] = []
    for call in token.tool_calls:
        is_first = call.index not in called
        called.add(call.index)
        calls.append(replace(call, id=call_id_of(request_id, call.index)) if is_first and not call.id else call)
    return replace(token, tool_calls=tuple(calls))
