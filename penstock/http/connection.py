"""One client connection of a gateway: HTTP/1.1 as `penstock.http.http1` reads it, and how streams are written cheaply.

Its write buffer is small, so that a client that does not read costs little memory, and an answer's head is sent with
its first bytes. The scope holds what no ASGI message has: whether the whole body has arrived, and a `ClientChannel`, by
which a route sees that its client has left, writes tokens, and aborts the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope

from penstock.http.http1 import WHOLE, Http1Connection
from penstock.http.uvicorn_inside import LightEvent, LightQueue

__all__ = ["CLIENT", "WHOLE", "ClientChannel", "Disconnect", "GatewayConnection", "header"]

WRITE_BUFFER_BYTES = 32 * 1024
CLIENT = "penstock.client"  # in the scope: a `ClientChannel`
CHUNKED = b"transfer-encoding: chunked"
STATUS_LINE = b"HTTP/1.1 "  # how every answer begins
# Times after a client's end of file at which one byte is written. A client that has closed rejects it, and the next
# write fails.
# Fewer than 16 in all, as clients bound the digits of a chunk's size.
PROBE_AFTER_S = (0.0, 0.02, 0.1, 0.5, 2.0, 5.0, 15.0, 30.0, 60.0)


class GatewayConnection(Http1Connection):
    """See the head of this file. `ConnectionLimit.apply` sets its limits."""

    _probe_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it the same way
        self._watchers: set[Callable[[], None]] = set()
        super().connection_made(transport)
        event: Any = LightEvent(is_set=True)
        self.flow._is_writable_event = event
        queue: Any = LightQueue()
        self.pipeline = queue
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)
        for on_gone in list(self._watchers):
            on_gone()

    def eof_received(self) -> bool:  # type: ignore[override]  # as in the base
        stays = super().eof_received()
        if stays and self._probe_timer is None:
            self._probe(0)
        return stays

    def _probe(self, num_sent: int) -> None:
        """Find out whether the client has closed only its side, and waits, or the connection, and its request must end.

        Both look the same here until a write: a client that has closed rejects it, and the next write fails. So a
        first part of what the client would get anyway is written now: a byte of the answer's status line, or a
        leading zero of the next chunk's size.
        """
        if self.transport.is_closing():
            return
        cycle = self._running
        if isinstance(cycle.transport, _Head):
            cycle.transport.begin()
        elif cycle.chunked_encoding and not cycle.response_complete and cycle.scope["http_version"] != "1.0":
            self.transport.write(b"0")
        if num_sent + 1 < len(PROBE_AFTER_S):
            self._probe_timer = self.loop.call_later(PROBE_AFTER_S[num_sent + 1], self._probe, num_sent + 1)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        cycle.message_event = LightEvent(is_set=cycle.message_event.is_set())
        # A client of HTTP/1.0 does not know chunks: its stream ends with the connection (RFC 9112, 6.1).
        transport: asyncio.Transport | _Unchunked
        transport = _Unchunked(self.transport) if cycle.scope["http_version"] == "1.0" else self.transport
        cycle.transport = _Head(cycle, transport, self.loop)
        cycle.scope[CLIENT] = ClientChannel(self.transport, cycle, self._watchers)
        super()._start_asgi_task(cycle, app)


class ClientChannel:
    """The client of one request: `is_gone()`, `abort()`; `watchers` are called when the connection is lost."""

    __slots__ = ("_cycle", "abort", "is_gone", "watchers")

    def __init__(self, transport: asyncio.Transport, cycle: Any, watchers: set[Callable[[], None]]) -> None:
        self.abort = transport.abort
        self.is_gone = transport.is_closing
        self.watchers = watchers
        self._cycle = cycle

    @property
    def takes_more(self) -> bool:
        """Whether more of a stream's body may be written to it without waiting."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or self.is_gone() or cycle.disconnected) and cycle.chunked_encoding

    def write(self, body: bytes) -> None:
        """Write more of a stream's body to a client that `takes_more`: the same bytes as an awaited `send`.

        Runs once a token: the message, the coroutine and the checks of a `send` cost as much as the write itself.
        """
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class _Head:
    """Replaces a cycle's transport until its answer begins: keeps the head for the body, or until the turn is over.

    A write is a system call, and a client cannot use a head alone.
    """

    __slots__ = ("_cycle", "_data", "_loop", "_num_begun", "_transport")

    def __init__(self, cycle: Any, transport: asyncio.Transport | _Unchunked, loop: asyncio.AbstractEventLoop) -> None:
        self._num_begun = 0
        self._cycle = cycle
        self._transport = transport
        self._loop = loop
        self._data = b""

    def write(self, data: bytes) -> None:
        if self._data:
            self._data += data
            self._flush()
        else:
            self._data = data
            self._loop.call_soon(self._flush)

    def begin(self) -> None:
        """Write the next byte of the status line; the head follows without it."""
        if not self._data and self._num_begun < len(STATUS_LINE):
            self._num_begun += 1
            self._transport.write(STATUS_LINE[self._num_begun - 1 : self._num_begun])

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        data, self._data = self._data, b""
        self._cycle.transport = self._transport
        if data and not self._transport.is_closing():
            self._transport.write(data[self._num_begun :])


class _Unchunked:
    """A transport of an answer to HTTP/1.0: takes what is written in chunks, and sends it without them.

    Each write has whole chunks, in front of which may be the head.
    """

    __slots__ = ("_has_head", "_is_chunked", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._has_head = self._is_chunked = False

    def write(self, data: bytes) -> None:
        if not self._has_head:
            head, blank, data = data.partition(b"\r\n\r\n")
            self._has_head = bool(blank)
            plain = head.replace(b"\r\n" + CHUNKED, b"", 1)
            self._is_chunked = plain != head
            self._transport.write(plain + blank)
        if self._is_chunked:
            data = _joined(data)
        if data:
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def _joined(chunks: bytes) -> bytes:
    parts, at = [], 0
    while at < len(chunks):
        begin = chunks.index(b"\r\n", at) + 2
        end = begin + int(chunks[at : begin - 2], 16)
        parts.append(chunks[begin:end])
        at = end + 2
    return b"".join(parts)


class Disconnect:
    """Calls `wake` when the client disconnects while its answer is being made."""

    __slots__ = ("_client", "_wake")

    def __init__(self, scope: Scope, wake: Callable[[], None]) -> None:
        self._client: ClientChannel = scope[CLIENT]
        self._wake = wake
        self._client.watchers.add(wake)

    @property
    def has_happened(self) -> bool:
        return self._client.is_gone()

    def stop(self) -> None:
        self._client.watchers.discard(self._wake)


def header(scope: Scope, name: bytes) -> str | None:
    """The value of the first header `name` (lower case), or None. Runs once a request, so no `Headers` are made."""
    for found, value in scope["headers"]:
        if found == name:
            return cast(bytes, value).decode("latin-1")
    return None
