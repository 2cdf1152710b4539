"""One client connection: uvicorn's HTTP protocol with the limits that a server in the open needs.

Adds what uvicorn leaves out: a cap on connections, a deadline and a size limit for a request's head, a small write
buffer (so that a client that reads nothing costs little). Joins an answer's head with its first bytes. Through the
scope it tells what no message says: that a body has arrived whole, that the client has gone; and lets go of a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.errors import InvalidRequest, PenstockError, SlowBody, Unavailable

MAX_HEAD_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 32 * 1024
CLIENT = "penstock.client"  # in the scope: a `Client`
WHOLE = "penstock.whole"  # in the scope once the whole request has arrived

_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}


class Connection(HttpToolsProtocol):
    """See the head of this file. `header_timeout_s` and `max_connections` are set by `limited`."""

    header_timeout_s = 10.0
    max_connections = 10_000

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it the same way
        super().connection_made(transport)
        light: Any = _Event(is_set=True)
        self.flow._is_writable_event = light
        queue: Any = _Queue()
        self.pipeline = queue
        self._watchers: set[Callable[[], None]] = set()
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if len(self.connections) > self.max_connections:
            self._refuse(Unavailable("Too many connections.", retry_after_s=1.0))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        for on_gone in list(self._watchers):
            on_gone()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        # Most heads come in one piece, and need no timer.
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)  # not by a call: there are many of them in every request
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_headers_complete()
            cycle: Any = self.cycle
            if cycle is not None:
                cycle.message_event = _Event(is_set=cycle.message_event.is_set())
                cycle.transport = _Head(cycle, self.transport, self.loop)
                cycle.scope[CLIENT] = Client(self.transport, cycle, self._watchers)

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None and not self.transport.is_closing():
            cast(dict[str, Any], self.scope)[WHOLE] = True
            super().on_message_complete()

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self._refuse(InvalidRequest(f"The request's head is larger than {MAX_HEAD_BYTES} bytes."))

    def _await_head(self) -> None:
        if not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(SlowBody(f"The request's head did not arrive within {self.header_timeout_s:g} s."))

    def _refuse(self, error: PenstockError) -> None:
        """Answer before there is a request, in the one envelope, and close."""
        body = msgspec.json.encode(error.envelope())
        lines = [
            b"HTTP/1.1 %d %s" % (error.status, _PHRASES.get(error.status, b"Error")),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        if error.retry_after_s is not None:
            lines.append(b"retry-after: %d" % error.retry_after_s)
        self._stop_timer()
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()


class Client:
    """Who is at the other end: `is_gone()`, `abort()`; `watchers` are called when the connection is lost."""

    __slots__ = ("_cycle", "abort", "is_gone", "watchers")

    def __init__(self, transport: asyncio.Transport, cycle: Any, watchers: set[Callable[[], None]]) -> None:
        self.abort = transport.abort
        self.is_gone = transport.is_closing
        self.watchers = watchers
        self._cycle = cycle

    @property
    def takes_more(self) -> bool:
        """A stream's body may be written to it without waiting."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or self.is_gone() or cycle.disconnected) and cycle.chunked_encoding

    def write(self, body: bytes) -> None:
        """More of a stream's body to one that `takes_more`, as an awaited `send` writes it and without its cost.

        For what runs once a token: a message, a coroutine and its checks cost as much as the write.
        """
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class _Head:
    """A cycle's transport until its answer has begun: holds the head until there is a body, or the turn is over.

    A write is a system call, and a head alone is of no use to anybody.
    """

    __slots__ = ("_cycle", "_data", "_loop", "_transport")

    def __init__(self, cycle: Any, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
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

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        data, self._data = self._data, b""
        self._cycle.transport = self._transport
        if data and not self._transport.is_closing():
            self._transport.write(data)


class _Event:
    """What uvicorn uses of an `asyncio.Event`, without its deque until somebody waits: hardly ever, and 760 bytes."""

    __slots__ = ("_event", "_is_set")

    def __init__(self, *, is_set: bool) -> None:
        self._is_set = is_set
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> None:
        if not self._is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()


class _Queue(list[Any]):
    """What uvicorn uses of a deque, for requests that wait for the one before them on their connection."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)


class Departure:
    """Notices that the client has left, while the answer is still being made."""

    __slots__ = ("_client", "_wake")

    def __init__(self, scope: Scope, wake: Callable[[], None]) -> None:
        self._client: Client = scope[CLIENT]
        self._wake = wake
        self._client.watchers.add(wake)

    @property
    def has_happened(self) -> bool:
        return self._client.is_gone()

    def stop(self) -> None:
        self._client.watchers.discard(self._wake)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case. Once a request: without an object to hold them."""
    for found, value in scope["headers"]:
        if found == name:
            return cast(bytes, value).decode("latin-1")
    return None


def limited(header_timeout_s: float, max_connections: int) -> type[Connection]:
    """The protocol class for uvicorn's `http` option, with these limits."""
    limits: dict[str, Any] = {"header_timeout_s": header_timeout_s, "max_connections": max_connections}
    return type("LimitedConnection", (Connection,), limits)
