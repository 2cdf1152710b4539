"""One socket to one Redis server, from connected to lost, for traffic that goes through it by the thousand a second.

One reader owns it, replies go to futures in the order of the commands. What is sent first in a turn of the event loop
leaves at once, what else is sent in that turn is joined, and posted commands leave with the next one that is sent, or
after `POST_WITHIN_S`. When the link breaks, all waiting callers get `StoreUnavailable`; nothing is repeated here,
because only the caller knows what may be. A cancelled caller's reply is discarded by its position, never handed to
another. Knows nothing of keys, scripts or jobs, and not when to connect again: that is `connection.py`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from hiredis import HiredisError, Reader, ReplyError, pack_command

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.endpoint import Endpoint

Reply = Any  # bytes, int, None, ReplyError, or a list of these

CONNECT_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 1.0
MAX_PENDING = 100_000
MAX_JOINED = 16
POST_WITHIN_S = 0.01

# Replies that mean "not this server, not now": the address must be resolved and dialled again.
_TURNED_AWAY = ("READONLY", "UNBLOCKED", "LOADING", "MASTERDOWN", "CLUSTERDOWN")
NOT_YET = object()


class StoreMetrics(Protocol):
    """Receives what the transport counts. `metrics.Metrics` is one."""

    def round_trip(self, verb: str, seconds: float) -> None: ...

    def store_error(self, kind: str) -> None: ...


class NoMetrics:
    """Discards everything."""

    def round_trip(self, verb: str, seconds: float) -> None:
        pass

    def store_error(self, kind: str) -> None:
        pass


class _Waiting:
    """A caller: how many replies it waits for, and those it has. Without a future they are discarded."""

    __slots__ = ("count", "deadline", "future", "replies")

    def __init__(self, future: asyncio.Future[list[Reply]] | None, count: int, deadline: float) -> None:
        self.future = future
        self.count = count
        self.deadline = deadline
        self.replies: list[Reply] = []


class Link(asyncio.Protocol):
    """One socket, from connected to lost. Made by `dial`."""

    def __init__(self, metrics: StoreMetrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._reader = Reader(notEnoughData=NOT_YET)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._is_joining = False
        self._posting: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiting] = deque()
        self._num_pending = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._reason = "the connection to Redis was lost"
        self.is_turned_away = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self.closed.done()

    def send(self, data: bytes, count: int, timeout_s: float) -> asyncio.Future[list[Reply]]:
        """Send packed commands that bring `count` replies; the future has them, or `StoreUnavailable`."""
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        if not self.is_open:
            future.set_exception(StoreUnavailable(self._reason))
        elif self._num_pending + count > MAX_PENDING:
            future.set_exception(StoreUnavailable("Too many commands wait for Redis."))
        else:
            self._await(count, timeout_s, future)
            self.write(data)
        return future

    def post(self, data: bytes, count: int, timeout_s: float) -> None:
        """The same without a reply, within `POST_WITHIN_S`: a separate system call would cost more than the command.
        Nothing is sent where `send` would fail."""
        if self.is_open and self._num_pending + count <= MAX_PENDING:
            self._await(count, timeout_s, None)
            self._out.append(data)
            if len(self._out) >= MAX_JOINED:
                self._flush()
            elif self._posting is None:
                self._posting = self._loop.call_later(POST_WITHIN_S, self._flush_posted)

    def _await(self, count: int, timeout_s: float, future: asyncio.Future[list[Reply]] | None) -> None:
        self._num_pending += count
        self._waiting.append(_Waiting(future, count, self._loop.time() + timeout_s))
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(timeout_s, self._watch)

    def write(self, data: bytes) -> None:
        """Send without awaiting a reply here. The first of a turn never waits: a callback comes a whole turn later."""
        self._out.append(data)
        if not self._is_joining:
            self._is_joining = True
            self._loop.call_soon(self._flush_turn)
            self._flush()
        elif len(self._out) >= MAX_JOINED:  # in a long turn the server need not stand idle until its end
            self._flush()

    def abort(self, reason: str, kind: str) -> None:
        """Close now; everything that waits fails with `reason`."""
        if self.closed.done():
            return
        self._reason = reason
        self._metrics.store_error(kind)
        self._end()

    def close(self) -> None:
        """Close on purpose."""
        if not self.closed.done():
            if self._out:
                self._flush()
            self._reason = "the transport is closed"
            self._end()

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            self.read(self._reader.gets)
        except HiredisError as error:
            self.abort(f"Redis sent what is not its protocol: {error}", "protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(f"{self._reason}: {exc}" if exc else self._reason, "lost")

    # ── below ────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, gets: Callable[[], Reply]) -> None:
        """Every reply that is here, to the callers in their order. A subscription's link overrides this."""
        waiting = self._waiting
        while waiting:
            caller = waiting[0]
            while len(caller.replies) < caller.count:
                reply = gets()
                if reply is NOT_YET:
                    return
                if type(reply) is ReplyError and str(reply).startswith(_TURNED_AWAY):
                    self.is_turned_away = True
                    self.abort(f"Redis rejects commands: {reply}", "turned_away")
                    return
                caller.replies.append(reply)
            waiting.popleft()
            self._num_pending -= caller.count
            if caller.future is not None and not caller.future.done():  # a cancelled caller's replies end here
                caller.future.set_result(caller.replies)
        if gets() is not NOT_YET:
            self.abort("unexpected reply from Redis", "protocol")

    def _flush_turn(self) -> None:
        self._is_joining = False
        if self._out:
            self._flush()

    def _flush_posted(self) -> None:
        self._posting = None
        if self._out:
            self._flush()

    def _flush(self) -> None:
        if self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _watch(self) -> None:
        """Checks the caller at the head alone: it was sent first, so if it is in time, all behind it are."""
        self._watchdog = None
        if self.closed.done() or not self._waiting:
            return
        left = self._waiting[0].deadline - self._loop.time()
        if left <= 0:
            self.abort("Redis did not answer in time", "timeout")
        else:
            self._watchdog = self._loop.call_later(left, self._watch)

    def _end(self) -> None:
        self.closed.set_result(None)
        for timer in (self._watchdog, self._posting):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting, self._num_pending = self._waiting, deque(), 0
        for caller in waiting:
            if caller.future is not None and not caller.future.done():
                caller.future.set_exception(StoreUnavailable(f"Redis is away: {self._reason}"))


async def dial(endpoint: Endpoint, link: Link, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Connect `link`'s socket. `StoreUnavailable` if that fails or takes too long."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            if endpoint.path is not None:
                await loop.create_unix_connection(lambda: link, endpoint.path)
            else:
                await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=endpoint.tls)
    except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
        link.abort(f"cannot connect to {endpoint}", "connect")
        raise StoreUnavailable(f"Redis is away: cannot connect to {endpoint}: {error or 'timed out'}") from error


async def greet(link: Link, commands: Sequence[tuple[Any, ...]], timeout_s: float = CONNECT_TIMEOUT_S) -> list[Reply]:
    """Send a connection's first commands, return their replies. `StoreUnavailable` if one is refused."""
    if not commands:
        return []
    replies = await link.send(b"".join(map(pack_command, commands)), len(commands), timeout_s)
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ReplyError):
            link.abort(f"Redis refused {command[0]}: {reply}", "refused")
            raise StoreUnavailable(f"Redis refused {command[0]}: {reply}")
    return replies


async def let_in(endpoint: Endpoint, link: Link, name: str, preload: Sequence[tuple[Any, ...]] = ()) -> None:
    """Dial and greet. `StoreUnavailable` also if the server must be a master and is not one (any more)."""
    await dial(endpoint, link)
    role = [("ROLE",)] if endpoint.is_master else []
    replies = await greet(link, [*endpoint.greeting(name), *role, *preload])
    if role and replies[len(replies) - len(preload) - 1][0] != b"master":
        link.abort(f"{endpoint} is not a master", "turned_away")
        raise StoreUnavailable(f"Redis is away: {endpoint} is not a master")


async def ask_once(endpoint: Endpoint, metrics: StoreMetrics, *command: str) -> Reply:
    """One question to one server, over a connection of its own. `StoreUnavailable` within about two seconds."""
    link = Link(metrics)
    try:
        await dial(endpoint, link, ASK_TIMEOUT_S)
        return (await greet(link, [*endpoint.greeting("penstock-asks"), command], ASK_TIMEOUT_S))[-1]
    finally:
        link.close()
