"""HTTP/1.1 on one client connection: how bytes become requests, for gateways and for the small server of a worker.

uvicorn's protocol with what a public server needs: an `Upgrade` is ignored and never changes how a body is read;
heads have a deadline and a size; a connection has bounded requests waiting on it; a client that half-closes gets its
answers; a refusal reaches the client; and idle connections give way when the server is at capacity. Knows no route.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools

from penstock.errors import Draining, InvalidRequest, MethodNotAllowed, PenstockError, SlowBody, Unavailable
from penstock.http.heads import judge_head
from penstock.http.listener import OpenConnections
from penstock.http.refusal import answer
from penstock.http.uvicorn_inside import FlowControl, HttpToolsProtocol
from penstock.settings.about import env_name

MAX_HEAD_BYTES = 64 * 1024
MAX_HELD_BYTES = 64 * 1024  # of later requests, unparsed, while one is answered: then reading stops
SLICE_BYTES = 4096  # parsed at a time, as the parser cannot stop where a request ends
MIN_PIECE_BYTES = 64  # of a body, on average: each piece costs microseconds, and a read may hold 40,000 of one byte
SPARE_BYTES = 64 * 1024  # so many short of that average a body may be: 1,000 pieces of any size
LINGER_S = 1.0
CLOSING = "This server is shutting down."
VERSIONS = ("1.1", "1.0")
WHOLE = "penstock.whole"  # in the scope once the whole request has arrived


class Http1Connection(HttpToolsProtocol):
    """See the head of this file. `server_state` must be `OpenConnections`; `ConnectionLimit.apply` sets the limits."""

    header_timeout_s = 10.0
    max_connections = 10_000
    max_lingering = 64  # connections beyond those that stay a moment to read their refusal
    stalled_s = 32.0  # a client that reads nothing for so long, while something is to be written, is cut off

    _timer: asyncio.TimerHandle | None = None  # for a head that arrives, or for a client that reads its refusal
    _stall: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _spare_bytes = SPARE_BYTES
    _silent_bytes = 0  # parsed since the parser last reported anything
    _is_in_head = False
    _ignores_input = False  # nothing more that arrives is parsed
    _is_eof = False
    _replay: bytes | None = None  # the head just parsed, without its Upgrade
    _held = b""
    _refusal: PenstockError | None = None  # due after the answers that are due
    _running: Any = None  # the cycle of the request that is being answered, or was last

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it the same way
        super().connection_made(transport)
        self.flow = _Flow(transport)
        state = cast(OpenConnections, self.server_state)
        self._idle = state.idle
        if state.is_closing:
            self._refuse(Draining(CLOSING, retry_after_s=1.0))
        elif len(self.connections) > self.max_connections and not state.evict_one(self.loop.time()):
            self._refuse(Unavailable(f"Too many connections ({env_name('max_connections')}).", retry_after_s=1.0))
        else:
            self._idle[self] = self.loop.time()
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        self._idle.pop(self, None)
        if (running := self._running) is not None and not running.response_complete:
            running.disconnected = True  # uvicorn marks the request that was parsed last
            running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows an answer, which uvicorn does not give
        """The client sends no more: what it has sent whole is answered, then the connection closes."""
        self._is_eof = self._is_busy()
        return self._is_eof

    def pause_writing(self) -> None:
        """The client does not read: abort after `stalled_s`. No other limit applies to it."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops. A client without a request so far gets a refusal: its first one may be on its way."""
        if self.cycle is None and not self._ignores_input:
            self._refuse(Draining(CLOSING, retry_after_s=1.0))
        else:
            super().shutdown()

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._ignores_input or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._held:
            self._hold(data)
        else:
            self._feed(data)

    def _is_busy(self) -> bool:
        """A request has arrived whole and is not answered yet."""
        cycle: Any = self.cycle
        return bool(self.pipeline) or not (cycle is None or cycle.response_complete or cycle.more_body)

    def _feed(self, data: bytes) -> None:
        """Parse what belongs to the request that is due; hold back what follows a whole one until that is answered."""
        for start in range(0, len(data), SLICE_BYTES):
            if self._is_busy():
                self._hold(data[start:])
                return
            self._parse(data if len(data) <= SLICE_BYTES else data[start : start + SLICE_BYTES])
            if self._ignores_input:
                return
        # Most heads come in one piece, and need no timer.
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_HELD_BYTES:
            cast(_Flow, self.flow).hold()

    def _parse(self, data: bytes) -> None:
        """The parser stops behind the head of a request with `Connection: Upgrade` (RFC 9110, 7.8: it may be ignored)
        and would take its body for the next request. So a new parser gets that head again, without the Upgrade.
        """
        self._silent_bytes += len(data)
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._replay is None:  # it was refused
                    return
                data = self._replay + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
            else:
                break
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(InvalidRequest(f"More than {MAX_HEAD_BYTES} bytes arrived without the end of a header."))

    # ── what the parser finds ────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._is_in_head = True
        self._spare_bytes = SPARE_BYTES
        self._replay = None

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._silent_bytes = 0
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            super().on_header(name, value)
        # A trailer is counted and dropped: it must not pass for a header that a proxy or this server has judged.
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value)  # not by a call: there are many of them in every request
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._is_in_head = False
        self._silent_bytes = 0
        if self._ignores_input or self.transport.is_closing():
            return
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self._refuse(MethodNotAllowed("CONNECT is not allowed: this is a server and not a proxy."))
        elif version not in VERSIONS:
            self._refuse(InvalidRequest(f"HTTP/{version} is not spoken here; send HTTP/1.1."))
        elif self.parser.should_upgrade():
            lines = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
            self._replay = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version.encode(), b"".join(lines))
        else:
            try:
                self.url = judge_head(self.url, self.headers, version)
            except PenstockError as error:
                self._refuse(error)
                return
            self._idle.pop(self, None)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        self._spare_bytes = min(self._spare_bytes + len(body) - MIN_PIECE_BYTES, SPARE_BYTES)
        if not self._ignores_input and not self.transport.is_closing():
            super().on_body(body)
            if self._spare_bytes < 0:
                self._refuse(InvalidRequest(f"The body arrives in pieces of less than {MIN_PIECE_BYTES} bytes each."))

    def on_message_complete(self) -> None:
        if self._replay is None and not self._ignores_input and not self.transport.is_closing():
            cast(dict[str, Any], self.scope)[WHOLE] = True
            self._stop_timer()  # set where the rest of a body arrived after its answer
            super().on_message_complete()

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._held and not self._is_busy() and not self.transport.is_closing():
            data, self._held = self._held, b""
            cast(_Flow, self.flow).let_go()
            self.data_received(data)
        if self._is_busy() or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._is_eof:
            self._running.transport.close()
        elif self.cycle.response_complete:
            self._idle[self] = self.loop.time()
            if self._is_in_head and self._timer is None:
                self._await_head()

    # ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        if not self._ignores_input:  # what follows a refused head need not be HTTP
            self._refuse(InvalidRequest(msg))

    def _refuse_head(self) -> None:
        if not self._ignores_input:
            self._refuse(InvalidRequest(f"The request's head is larger than {MAX_HEAD_BYTES} bytes (MAX_HEAD_BYTES)."))

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            in_time = f"within {self.header_timeout_s:g} s ({env_name('header_timeout_s')})"
            self._refuse(SlowBody(f"The request's head did not arrive {in_time}."))

    def _refuse(self, error: PenstockError) -> None:
        """Answer what is not a valid request, in the one envelope, after the answers that are due; then close."""
        self._ignores_input = True
        self._stop_timer()
        cycle: Any = self.cycle
        if self._is_busy():
            self._refusal = error
            return
        if cycle is not None and not cycle.response_complete:  # its body is at fault
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self.transport.write(answer(error, self.server_state.default_headers))
        # Closed at once, with something unread, the kernel would send a reset, and the client might not see the answer.
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)


class _Flow(FlowControl):
    """uvicorn's flow control, but it does not resume reading while `MAX_HELD_BYTES` of later requests are held."""

    is_held = False

    def hold(self) -> None:
        self.is_held = True
        self.pause_reading()

    def let_go(self) -> None:
        self.is_held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()
