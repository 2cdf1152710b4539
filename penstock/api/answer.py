"""How a stream becomes an HTTP answer: whole, or event by event. What the events look like is the API's business.

One loop for every API and for both forms; a whole answer is the stream drained. An answer may be made of several
streams (`n` > 1), which share one connection. What already waits is joined into one write, and nothing ever waits in
order to be joined. The status of a stream is decided when its first token is there, or after `STATUS_WAIT_S`, so that
most failures still have a status of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.answer_fields import failure_of, timings
from penstock.api.opened import Opened
from penstock.api.stream_head import SSE_TYPE, STREAM_HEADERS
from penstock.errors import PenstockError
from penstock.event import Done, Failed, Terminal
from penstock.gateway.keepalive import StreamHealth
from penstock.gateway.relay import Reader, run_push, wait_changed
from penstock.http.connection import CLIENT, ClientChannel, Disconnect
from penstock.http.edge import error_response, give_back
from penstock.rich_token import Token
from penstock.sse import KEEPALIVE, unbroken

logger = logging.getLogger(__name__)

STATUS_WAIT_S = 1.0
MAX_JOINED = 128  # tokens in one write; with `WRITE_BUFFER_BYTES` the bound of what a stalled stream holds


class AnswerResponse(Response):
    """The answer to what was submitted with one HTTP request. It owns the streams and the permit, and lets go of both.

    Most APIs submit one request: theirs is `stream`. Of several, one that fails ends the answer: a client that asked
    for n cannot use fewer. `is_replay`: a retrieval of a stored result, for which a failed request is data and not an
    HTTP error.
    """

    is_replay = False
    stream_type = SSE_TYPE

    def __init__(self, opened: Opened, *, is_stream: bool, queue_events: bool | None = False) -> None:
        # Not `super().__init__()`, which renders a body and headers that this answer does not have, at the cost of
        # some microseconds a request. It is a `Response` because FastAPI takes any other object for data to encode.
        self.background = None
        self.gateway = opened.gateway
        self.call = opened.call
        self.readers = opened.readers
        self.stream = opened.reader.stream
        self.permit = opened.permit
        self.is_stream = is_stream
        self.queue_events = queue_events
        self._open = list(opened.readers)  # those whose end is not written yet
        self._position = 0

    # ── what an API fills in ─────────────────────────────────────────────────────────────────────────────────────

    def whole(self, ends: Sequence[Done]) -> bytes:
        """The JSON body of a whole answer; `ends` are those of the streams, in their order."""
        raise NotImplementedError

    async def make_whole(self, ends: Sequence[Done]) -> bytes:
        """The same, where making it may take long."""
        return self.whole(ends)

    def token_frames(self, reader: Reader, first: int, tokens: list[Token]) -> list[bytes]:
        """One SSE event for each token of the reader's stream; `first` is the index of the first."""
        raise NotImplementedError

    def end_frame(self, reader: Reader, end: Terminal) -> bytes:
        """The last SSE event(s) of the reader's stream."""
        raise NotImplementedError

    def closing(self) -> bytes:
        """The SSE event(s) behind the ends of all streams; empty where an API has none."""
        return b""

    def queued_frame(self, position: int, wait_s: float | None) -> bytes:
        """The SSE event for a place in the queue; empty where an API has none."""
        return b""

    def idle_news(self) -> bytes:
        """The bytes to write when there is neither a token nor an end; may be empty."""
        return self._queue_news()

    def keepalive(self) -> bytes:
        """The bytes to write after a silence, which change nothing."""
        return KEEPALIVE

    def failure(self, end: Terminal) -> PenstockError | None:
        """The error of `end` in this API; None if `end` completes an answer."""
        return failure_of(end)

    # ── the one loop ─────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # To wake one reader is enough: the answer waits for all of them at once.
        disconnect = Disconnect(scope, self.readers[0].wake)
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
            for reader in self.readers:
                self.gateway.unwatch_queue(reader)
                self.gateway.relay.leave(reader, is_delivered=is_delivered)
            self.permit.release()
            self.gateway.metrics.stream_closed()

    async def _whole(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        for reader in self.readers:
            reader.is_for_end = True
        while (error := self.error()) is None and not self._is_ended():
            if disconnect.has_happened:
                return False
            await wait_changed(self.readers)
        if error is not None:
            await give_back(self.call, error)
            await error_response(error, self.call)(scope, receive, send)
            return True
        body = await self.make_whole([end for reader in self.readers if isinstance(end := reader.stream.end, Done)])
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return True

    async def _stream(self, disconnect: Disconnect, scope: Scope, receive: Receive, send: Send) -> bool:
        await self._status(disconnect)
        if disconnect.has_happened:
            return False
        failed = self._early_failure()
        if failed is not None:
            await give_back(self.call, error := failed.error())
            await error_response(error, self.call)(scope, receive, send)
            return True
        await send({"type": "http.response.start", "status": 200, "headers": [self.stream_type, *STREAM_HEADERS]})
        client: ClientChannel = scope[CLIENT]
        health = StreamHealth(self.readers[0].wake, client.abort)
        self.gateway.keepalive.watched.add(health)
        try:
            return await self._relay(disconnect, health, client, self.call.send or send)
        finally:
            self.gateway.keepalive.watched.discard(health)
            if health.was_cut:
                logger.warning(
                    "cut: the client does not read (PENSTOCK_SLOW_READER_S)", extra={"request_id": self.stream.job.id}
                )

    async def _relay(self, disconnect: Disconnect, health: StreamHealth, client: ClientChannel, send: Send) -> bool:
        """Write the frames that wait, each time in one write, until the end; `send` is the server's own."""
        push = partial(self._push, health, client)
        while not disconnect.has_happened:
            is_over = False
            if self._has_news():
                body, is_over = self.news()
                if not body and not is_over:  # all of it is known to the client
                    continue
            elif not (body := self.idle_news()):
                if not health.is_due:
                    await run_push(self.readers, push)
                    continue
                body = self.keepalive()
            health.is_due = False
            body = unbroken(body)
            if not is_over and client.takes_more:
                client.write(body)
            else:
                health.is_sending = True
                await send({"type": "http.response.body", "body": body, "more_body": not is_over})
                health.is_sending = False
            health.num_sent += 1
            if is_over:
                return True
        return False

    def _push(self, health: StreamHealth, client: ClientChannel, reader: Reader) -> bool:
        """Runs per token: writes the usual news from the callback that receives them. False if `_relay` must look."""
        stream = reader.stream
        tokens = stream.tokens
        first, num = reader.num_sent, len(tokens)
        if first == num:
            return False
        while first < num:
            if stream.end is not None or health.is_due or not client.takes_more:
                return False
            fresh = tokens[first : first + MAX_JOINED]
            frames = self.token_frames(reader, first, fresh)
            reader.num_sent = first = first + len(fresh)
            if body := frames[0] if len(frames) == 1 else b"".join(frames):
                client.write(unbroken(body))
                health.num_sent += 1
        return True

    async def _status(self, disconnect: Disconnect) -> None:
        """Wait until there is a token, or an end, or `STATUS_WAIT_S` has passed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (0.0 if self.queue_events else STATUS_WAIT_S)
        while not disconnect.has_happened:
            for reader in self.readers:
                if reader.stream.tokens or reader.stream.end is not None:
                    return
            if (left := until - loop.time()) <= 0:
                return
            await wait_changed(self.readers, left)

    def _early_failure(self) -> Failed | None:
        """The failure of a stream before any token, which is still an HTTP error with a status of its own."""
        if self.is_replay or any(reader.stream.tokens for reader in self.readers):
            return None
        ends = (reader.stream.end for reader in self.readers)
        return next((end for end in ends if isinstance(end, Failed)), None)

    def error(self) -> PenstockError | None:
        """The error of the first stream that has failed."""
        for reader in self.readers:
            if (end := reader.stream.end) is not None and (error := self.failure(end)) is not None:
                return error
        return None

    def _is_ended(self) -> bool:
        return all(reader.stream.end is not None for reader in self.readers)

    def _has_news(self) -> bool:
        return any(reader.has_news for reader in self._open)

    def news(self) -> tuple[bytes, bool]:
        """The frames that wait, as one body, and whether the answer ends with it.

        At most `MAX_JOINED` tokens of each reader, so that a slow client costs a bounded amount of memory.
        """
        frames: list[bytes] = []
        for reader in list(self._open):
            if not reader.has_news:
                continue
            first, tokens = reader.fresh(MAX_JOINED)
            frames += self.token_frames(reader, first, tokens)
            end = reader.stream.end
            if end is not None and reader.num_sent >= len(reader.stream.tokens):
                frames.append(self.end_frame(reader, end))
                self._open.remove(reader)
                if not self._open or self.failure(end) is not None:
                    frames.append(self.closing())
                    return b"".join(frames), True
        return b"".join(frames), False

    # ── its place in the queue, and its log line ─────────────────────────────────────────────────────────────────

    def _queue_change(self) -> int:
        """The place in the queue, 1 for the next, if it differs from the last one written; else 0."""
        stream = self.stream
        if self.queue_events is False or stream.is_started or stream.end is not None:
            return 0
        self.gateway.watch_queue(self.readers[0])
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
        call, stream = self.call, self.readers[-1].stream
        if is_delivered:
            call.outcome = self._outcome()
        else:
            call.is_gone = True
            call.outcome = "disconnected"
        num_tokens = sum([len(reader.stream.tokens) for reader in self.readers])
        fields: dict[str, Any] = {"stream": self.is_stream, "completion_tokens": num_tokens}
        if isinstance(stream.end, Done):
            fields["prompt_tokens"] = stream.end.usage.prompt_tokens
            fields["finish_reason"] = stream.end.finish_reason
        call.fields |= fields | timings(stream)

    def _outcome(self) -> str:
        """The code of the first failure, or "cancelled" where one stream was, else "ok"."""
        outcome = "ok"
        for reader in self.readers:
            end = reader.stream.end
            if isinstance(end, Failed):
                return end.code
            if end is not None and end.finish_reason == "cancelled":
                outcome = "cancelled"
        return outcome
