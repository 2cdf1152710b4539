"""How a stream becomes an HTTP answer: whole, or event by event. What the events look like is the API's business.

One loop for every API and for both forms; a whole answer is the stream drained. What already waits is joined into one
write, and nothing ever waits in order to be joined. The status of a stream is decided when its first token is there,
or after `STATUS_WAIT_S`, so that most failures still have a status of their own.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.errors import Cancelled, PenstockError
from penstock.event import Done, Failed, Terminal
from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.keepalive import StreamHealth
from penstock.gateway.relay import Reader, RelayStream
from penstock.http.connection import CLIENT, ClientChannel, Disconnect
from penstock.http.edge import Call, error_response
from penstock.rich_token import RichToken, Token, Whole
from penstock.sse import KEEPALIVE, unbroken

logger = logging.getLogger(__name__)

STATUS_WAIT_S = 1.0
MAX_JOINED = 128  # tokens in one write; with `WRITE_BUFFER_BYTES` the bound of what a stalled stream holds
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def usage(end: Done) -> dict[str, int]:
    return {
        "prompt_tokens": end.usage.prompt_tokens,
        "completion_tokens": end.usage.completion_tokens,
        "total_tokens": end.usage.total_tokens,
    }


def timings(stream: RelayStream) -> dict[str, float | None]:
    """Milliseconds from the submission; None for what did not happen."""

    def since(at: float) -> float | None:
        return round((at - stream.submitted_at) * 1000, 3) if at else None

    return {
        "queue_ms": since(stream.started_at),
        "ttft_ms": since(stream.first_token_at),
        "total_ms": since(stream.ended_at),
    }


def extra_fields(text: Whole | RichToken) -> dict[str, Any]:
    """The fields next to the text that are not empty, by name: `{}` for plain text."""
    fields: dict[str, Any] = {"reasoning": text.reasoning, "tool_calls": text.tool_calls, "logprobs": text.logprobs}
    if isinstance(text, RichToken):
        fields["embedding"] = text.embedding
    return {name: value for name, value in fields.items() if value}


def error_data(error: PenstockError, request_id: str) -> bytes:
    return msgspec.json.encode({"request_id": request_id, **error.envelope()})


class AnswerResponse(Response):
    """The answer to one submitted request. It owns the stream and the permit, and lets go of both at its end.

    `is_replay`: a retrieval of a stored result, for which a failed request is data and not an HTTP error.
    """

    is_replay = False

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        reader: Reader,
        permit: Permit,
        *,
        is_stream: bool,
        queue_events: bool | None = False,
    ) -> None:
        self.background = None
        self.gateway = gateway
        self.call = call
        self.reader = reader
        self.stream = reader.stream
        self.permit = permit
        self.is_stream = is_stream
        self.queue_events = queue_events
        self._position = 0

    # ── what an API fills in ─────────────────────────────────────────────────────────────────────────────────────

    def whole(self, end: Done) -> bytes:
        """The JSON body of a whole answer."""
        raise NotImplementedError

    def token_frames(self, first: int, tokens: list[Token]) -> list[bytes]:
        """One SSE event for each token; `first` is the index of the first."""
        raise NotImplementedError

    def end_frame(self, end: Terminal) -> bytes:
        """The last SSE event(s)."""
        raise NotImplementedError

    def queued_frame(self, position: int, wait_s: float | None) -> bytes:
        """The SSE event for a place in the queue; empty where an API has none."""
        return b""

    def idle_news(self) -> bytes:
        """What to write when there is neither a token nor the end; empty for nothing."""
        return self._queue_news()

    def failure(self, end: Terminal) -> PenstockError | None:
        """The error that an end is instead of a whole answer; None where it is one."""
        if isinstance(end, Failed):
            return end.error()
        return Cancelled("The request was cancelled.") if end.finish_reason == "cancelled" else None

    # ── the one loop ─────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnect = Disconnect(scope, self.reader.wake)
        is_delivered = False
        self.gateway.metrics.stream_opened()
        try:
            if self.is_stream:
                is_delivered = await self._stream(disconnect, scope, receive, send)
            else:
                is_delivered = await self._whole(disconnect, scope, receive, send)
        finally:
            disconnect.stop()
            self.account(is_delivered)
            self.gateway.unwatch_queue(self.reader)
            self.gateway.relay.leave(self.reader, is_delivered=is_delivered)
            self.permit.release()
            self.gateway.metrics.stream_closed()

    async def _whole(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        stream = self.stream
        self.reader.is_for_end = True
        while stream.end is None:
            if disconnect.has_happened:
                return False
            await self.reader.changed()
        error = self.failure(stream.end)
        if error is not None:
            await error_response(error, self.call)(scope, receive, send)
            return True
        assert isinstance(stream.end, Done)  # a failure has an error
        body = self.whole(stream.end)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return True

    async def _stream(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        stream = self.stream
        await self._status(disconnect)
        if disconnect.has_happened:
            return False
        if isinstance(stream.end, Failed) and not stream.tokens and not self.is_replay:
            await error_response(stream.end.error(), self.call)(scope, receive, send)
            return True
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        client: ClientChannel = scope[CLIENT]
        health = StreamHealth(self.reader.wake, client.abort)
        self.gateway.keepalive.watched.add(health)
        try:
            return await self._relay(disconnect, health, client, self.call.send or send)
        finally:
            self.gateway.keepalive.watched.discard(health)
            if health.was_cut:
                logger.warning("cut: the client does not read", extra={"request_id": stream.job.id})

    async def _relay(self, disconnect: Disconnect, health: StreamHealth, client: ClientChannel, send: Send) -> bool:
        """Whatever waits, in one write, until the end; `send` is the server's own."""
        reader = self.reader
        push = partial(self._push, health, client)
        while not disconnect.has_happened:
            end = None
            if reader.has_news:
                body, end = self.news()
                if not body and end is None:  # all of it is known to the client
                    continue
            elif not (body := self.idle_news()):
                if not health.is_due:
                    await reader.served(push)
                    continue
                body = KEEPALIVE
            health.is_due = False
            body = unbroken(body)
            if end is None and client.takes_more:
                client.write(body)
            else:
                health.is_sending = True
                await send({"type": "http.response.body", "body": body, "more_body": end is None})
                health.is_sending = False
            health.num_sent += 1
            if end is not None:
                return True
        return False

    def _push(self, health: StreamHealth, client: ClientChannel) -> bool:
        """What runs per token: the usual news, written from where they are heard. False where `_relay` must look."""
        reader, tokens = self.reader, self.stream.tokens
        first = reader.num_sent
        if first == len(tokens):
            return False
        while first < len(tokens):
            if self.stream.end is not None or health.is_due or not client.takes_more:
                return False
            fresh = tokens[first : first + MAX_JOINED]
            reader.num_sent = first = first + len(fresh)
            frames = self.token_frames(first - len(fresh), fresh)
            if body := frames[0] if len(frames) == 1 else b"".join(frames):
                client.write(unbroken(body))
                health.num_sent += 1
        return True

    async def _status(self, disconnect: Disconnect) -> None:
        """Wait until there is a token, or the end, or `STATUS_WAIT_S` has passed."""
        stream = self.stream
        loop = asyncio.get_running_loop()
        until = loop.time() + (0.0 if self.queue_events else STATUS_WAIT_S)
        while not stream.tokens and stream.end is None and not disconnect.has_happened:
            left = until - loop.time()
            if left <= 0:
                return
            await self.reader.changed(left)

    def news(self) -> tuple[bytes, Terminal | None]:
        """What waits, as one body: joined, but never more than a slow client may cost us."""
        stream = self.stream
        first, tokens = self.reader.fresh(MAX_JOINED)
        end = stream.end if self.reader.num_sent >= len(stream.tokens) else None
        frames = self.token_frames(first, tokens)
        if end is not None:
            frames.append(self.end_frame(end))
        return b"".join(frames), end

    def _queue_change(self) -> int:
        """The place in the queue, 1 for the next, if it differs from the last one written; else 0."""
        stream = self.stream
        if self.queue_events is False or stream.is_started or stream.end is not None:
            return 0
        self.gateway.watch_queue(self.reader)
        position = self.gateway.places.known.get(stream.job.id, 0)
        return position if position != self._position else 0

    def _queue_news(self) -> bytes:
        position = self._queue_change()
        if not position:
            return b""
        self._position = position
        return self.queued_frame(position, self.gateway.pool.wait_s(position))

    def account(self, is_delivered: bool) -> None:
        """Fill in the fields of this request's log line."""
        stream, call = self.stream, self.call
        end = stream.end
        if not is_delivered:
            call.is_gone = True
            call.outcome = "disconnected"
        elif isinstance(end, Failed):
            call.outcome = end.code
        elif end is not None:
            call.outcome = "cancelled" if end.finish_reason == "cancelled" else "ok"
        fields: dict[str, Any] = {"stream": self.is_stream, "completion_tokens": len(stream.tokens)}
        if isinstance(end, Done):
            fields["prompt_tokens"] = end.usage.prompt_tokens
            fields["finish_reason"] = end.finish_reason
        call.fields |= fields | timings(stream)
