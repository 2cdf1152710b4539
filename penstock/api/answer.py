"""How a stream becomes an HTTP answer: whole, or event by event. What the events look like is the API's business.

One loop for every API and for both forms; a whole answer is the stream drained. What already waits is joined into one
write, and nothing ever waits in order to be joined. The status of a stream is decided when a worker has accepted the
job, or after `STATUS_WAIT_S`, so that most failures still have a status of their own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.admission import Permit
from penstock.api.connection import ABORT
from penstock.api.edge import Call, Departure, error_response
from penstock.errors import Cancelled, PenstockError
from penstock.event import Done, Failed, Terminal
from penstock.relay import Stream
from penstock.sse import KEEPALIVE

if TYPE_CHECKING:
    from penstock.gateway import Gateway

logger = logging.getLogger(__name__)

STATUS_WAIT_S = 1.0
_SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def usage(end: Done) -> dict[str, int]:
    return {
        "prompt_tokens": end.usage.prompt_tokens,
        "completion_tokens": end.usage.completion_tokens,
        "total_tokens": end.usage.total_tokens,
    }


def timings(stream: Stream) -> dict[str, float | None]:
    """Milliseconds from the submission; None for what did not happen."""

    def since(at: float) -> float | None:
        return round((at - stream.submitted_at) * 1000, 3) if at else None

    return {
        "queue_ms": since(stream.started_at),
        "ttft_ms": since(stream.first_token_at),
        "total_ms": since(stream.ended_at),
    }


def error_data(error: PenstockError, request_id: str) -> bytes:
    return msgspec.json.encode({"request_id": request_id, **error.envelope()})


class Answer(Response):
    """The answer to one submitted request. It owns the stream and the permit, and lets go of both at its end."""

    def __init__(self, gateway: Gateway, call: Call, stream: Stream, permit: Permit) -> None:
        self.background = None
        self.gateway = gateway
        self.call = call
        self.stream = stream
        self.permit = permit

    # ── what an API fills in ─────────────────────────────────────────────────────────────────────────────────────

    def whole(self, end: Done) -> bytes:
        """The JSON body of a whole answer."""
        raise NotImplementedError

    def token_frames(self, first: int, tokens: list[str]) -> list[bytes]:
        """One SSE event for each token; `first` is the index of the first."""
        raise NotImplementedError

    def end_frame(self, end: Terminal) -> bytes:
        """The last SSE event(s)."""
        raise NotImplementedError

    # ── the one loop ─────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self.stream
        departure = Departure(receive, stream.wake)
        is_delivered = False
        self.gateway.metrics.stream_opened()
        try:
            if stream.job.stream:
                is_delivered = await self._stream(departure, scope, receive, send)
            else:
                is_delivered = await self._whole(departure, scope, receive, send)
        finally:
            departure.stop()
            self._account(is_delivered)
            self.gateway.relay.close(stream, is_delivered=is_delivered)
            self.permit.release()
            self.gateway.metrics.stream_closed()

    async def _whole(self, departure: Departure, scope: Scope, receive: Receive, send: Send) -> bool:
        stream = self.stream
        while stream.end is None:
            await stream.changed()
            if departure.has_happened:
                return False
        if isinstance(stream.end, Failed):
            answer = error_response(stream.end.error())
        elif stream.end.finish_reason == "cancelled":
            answer = error_response(Cancelled("The request was cancelled."))
        else:
            answer = Response(self.whole(stream.end), media_type="application/json")
        await answer(scope, receive, send)
        return True

    async def _stream(self, departure: Departure, scope: Scope, receive: Receive, send: Send) -> bool:
        stream = self.stream
        await self._status(departure)
        if departure.has_happened:
            return False
        if isinstance(stream.end, Failed) and not stream.tokens:
            await error_response(stream.end.error())(scope, receive, send)
            return True
        headers = [(name.encode(), value.encode()) for name, value in _SSE_HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        slow_reader_s = self.gateway.settings.slow_reader_s
        keepalive_s = self.gateway.settings.sse_keepalive_s
        while True:
            if departure.has_happened:
                return False
            if stream.has_news:
                body, end = self._news()
            else:
                await stream.changed(keepalive_s)
                if stream.has_news or departure.has_happened:
                    continue
                body, end = KEEPALIVE, None
            try:
                async with asyncio.timeout(slow_reader_s):
                    await send({"type": "http.response.body", "body": body, "more_body": end is None})
            except TimeoutError:
                logger.warning("cut: the client takes no bytes", extra={"request_id": stream.job.id})
                scope["extensions"][ABORT]["abort"]()
                return False
            if end is not None:
                return True

    async def _status(self, departure: Departure) -> None:
        """Wait until a worker has accepted the job, or it ended, or `STATUS_WAIT_S` has passed."""
        stream = self.stream
        loop = asyncio.get_running_loop()
        until = loop.time() + STATUS_WAIT_S
        while not stream.is_started and stream.end is None and not departure.has_happened:
            left = until - loop.time()
            if left <= 0:
                return
            await stream.changed(left)

    def _news(self) -> tuple[bytes, Terminal | None]:
        """Everything that waits, as one body."""
        stream = self.stream
        end = stream.end
        first, tokens = stream.fresh()
        frames = self.token_frames(first, tokens)
        if end is not None:
            frames.append(self.end_frame(end))
        return b"".join(frames), end

    def _account(self, is_delivered: bool) -> None:
        """What the log line says of this request."""
        stream, call = self.stream, self.call
        end = stream.end
        if not is_delivered:
            call.is_gone = True
            call.outcome = "disconnected"
        elif isinstance(end, Failed):
            call.outcome = end.code
        elif end is not None:
            call.outcome = "cancelled" if end.finish_reason == "cancelled" else "ok"
        fields: dict[str, Any] = {"stream": stream.job.stream, "completion_tokens": len(stream.tokens)}
        if isinstance(end, Done):
            fields["prompt_tokens"] = end.usage.prompt_tokens
            fields["finish_reason"] = end.finish_reason
        call.fields |= fields | timings(stream)
