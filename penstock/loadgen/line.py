"""One connection of the load generator: one request at a time over raw HTTP/1.1.

The hot path. For each read: one timestamp, one C parser over it, one scan of the bytes that came, one histogram entry,
however many tokens were in it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Protocol, cast

import httptools
import msgspec

from penstock.loadgen.plan import Plan, Prepared
from penstock.loadgen.scan import make_scanner
from penstock.loadgen.tally import Tally

now_ns = time.monotonic_ns


class Owner(Protocol):
    """The opener of a connection; its methods are called when the connection or its request ends."""

    plan: Plan
    tally: Tally

    def on_idle_lost(self, line: Line, /) -> None: ...

    def on_end(self, line: Line, now: int, /) -> None: ...


class _Sink:
    """The parser's callbacks. `on_body` is a list's own `append`, so that no Python runs for a chunk."""

    __slots__ = ("is_complete", "is_reusable", "on_body", "parser", "parts", "request_id", "status")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.on_body = self.parts.append
        self.parser = httptools.HttpResponseParser(self)  # last: it looks up its callbacks now
        self.reset()

    def reset(self) -> None:
        self.is_complete = self.is_reusable = False
        self.status = 0
        self.request_id = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and name.lower() == b"x-request-id":
            self.request_id = value

    def on_headers_complete(self) -> None:
        # Here and not at the end, where the parser has dropped both.
        self.status = self.parser.get_status_code()
        self.is_reusable = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.is_complete = True


class Line(asyncio.Protocol):
    """A connection and the request that is on it. `load` decides what happens when that has ended."""

    __slots__ = (
        "at", "body", "first_at", "is_busy", "is_measured", "is_stream", "last_at", "load", "max_gap", "num",
        "scanner", "sink", "status", "transport",
    )  # fmt: skip

    def __init__(self, load: Owner) -> None:
        self.load = load
        self.scanner = make_scanner(load.plan.api)
        self.transport: asyncio.Transport | None = None
        self.is_busy = False
        self.at = 0
        self.sink = _Sink()

    def ask(self, prepared: Prepared, request: bytes, at: int, *, is_measured: bool) -> None:
        """Send a request that counts from `at` (monotonic ns)."""
        transport = self.transport
        assert transport is not None
        self.is_busy = True
        self.at = at
        self.is_measured = is_measured
        self.first_at = self.last_at = self.max_gap = self.num = self.status = 0
        self.is_stream = False
        self.body: list[bytes] = []
        self.sink.reset()
        self.scanner.reset(prepared.max_tokens)
        transport.write(request)

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = now_ns()
        sink = self.sink
        if not self.is_busy:  # bytes without a request
            self.close()
            self.load.on_idle_lost(self)
            return
        try:
            sink.parser.feed_data(data)
        except httptools.HttpParserError:
            self.scanner.mark_wrong("not HTTP")
            self._finish(now, is_reusable=False)
            return
        if not self.status and (sink.parts or sink.is_complete):
            self.status = sink.status
            self.is_stream = self.status == 200 and self.load.plan.is_stream
            self.scanner.request_id = sink.request_id
        parts = sink.parts
        if parts:
            if self.is_stream:
                num = self.scanner.feed(parts[0] if len(parts) == 1 else b"".join(parts))
                if num:
                    self._count(num, now)
            else:
                self.body += parts
            parts.clear()
        if sink.is_complete:
            self._finish(now, is_reusable=sink.is_reusable)

    def connection_lost(self, error: Exception | None) -> None:
        transport, self.transport = self.transport, None
        if self.is_busy:
            sink = self.sink
            if self.status and not sink.is_complete and self.is_stream and self.scanner.is_over:
                self._finish(now_ns(), is_reusable=False)  # a stream may end with its connection (HTTP/1.0)
            else:
                self.fail("connection closed")
        elif transport is not None:
            self.load.on_idle_lost(self)

    # ── the request ──────────────────────────────────────────────────────────────────────────────────────────────

    def _count(self, num: int, now: int) -> None:
        load = self.load
        tally = load.tally
        tally.total_tokens += num
        if tally.is_open:
            tally.num_tokens += num
        if self.num:
            gap = now - self.last_at
            if gap > self.max_gap:
                self.max_gap = gap
            if self.is_measured:
                tally.itl.add(gap)
        else:
            self.first_at = now
        if num > 1 and self.is_measured:
            tally.num_joined += num - 1
        self.num += num
        self.last_at = now

    def _finish(self, now: int, *, is_reusable: bool) -> None:
        """The answer is here: judge it, count it, go on."""
        scanner = self.scanner
        if self.status == 200:
            if not self.is_stream and not scanner.wrong:
                num = scanner.whole(b"".join(self.body))
                tally = self.load.tally
                tally.total_tokens += num
                if tally.is_open:
                    tally.num_tokens += num
            scanner.finish()
        elif not scanner.wrong:
            scanner.error = f"HTTP {self.status} {self._code()}".rstrip()
        self.is_busy = False
        if not is_reusable:
            self.close()
        self.load.on_end(self, now)

    def _code(self) -> str:
        try:
            error = msgspec.json.decode(b"".join(self.body))["error"]
            return str(error.get("code") or error.get("type") or "")
        except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
            return ""

    def fail(self, kind: str) -> None:
        """There will be no answer."""
        self.scanner.error = kind
        self.is_busy = False
        self.close()
        self.load.on_end(self, now_ns())

    def close(self) -> None:
        """Forget the connection; the next request opens another."""
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()


_REFUSALS: dict[type[Exception], str] = {
    ConnectionRefusedError: "connection refused",
    TimeoutError: "connect timeout",
    socket.gaierror: "host not found",
    ssl.SSLError: "TLS",
}


def why_not(error: OSError) -> str:
    """The kind of a connection that could not be opened."""
    for kind, name in _REFUSALS.items():
        if isinstance(error, kind):
            return name
    return "cannot connect"
