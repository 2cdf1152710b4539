"""Accepts connections: so many in one turn of the event loop, and so many in all. Knows nothing of HTTP.

uvloop accepts one connection a turn. Where each turn also serves a thousand streams, the last of 256 that come at once
would wait for 256 turns.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from penstock.http.uvicorn_inside import ServerState

logger = logging.getLogger(__name__)

BACKLOG = 2048
ACCEPTS_PER_TURN = 32  # some 2 ms of the loop's time
MIN_ACCEPTS_PER_TURN = 4
FULL_S = 0.05  # pause if even a connection that would be refused has no room
FAILED_S = 1.0  # pause after the system gave none, mostly because no file descriptor was left
EVICT_AFTER_S = 1.0  # a newer connection may be about to send its first request
RESERVED_FILES = 256  # for what is not a client's connection, and for refused ones
LINGERING_SHARE = 4  # one in so many of these is for refused connections


Kind = TypeVar("Kind", bound=asyncio.Protocol)


class Connected(Protocol):
    """The part of a connection that this file uses."""

    transport: asyncio.Transport


class OpenConnections(ServerState):
    """The state that all connections of one server share.

    `idle`: connections without a request, the longest idle first, each with the time since when (the loop's clock,
    seconds). `is_closing`: new connections are refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[Connected, float] = {}
        self.is_closing = False

    def evict_one(self, now: float) -> bool:
        """Close the connection that has been idle longest. False if none has been idle for `EVICT_AFTER_S`."""
        oldest = next(iter(self.idle), None)
        if oldest is None or now - self.idle[oldest] < EVICT_AFTER_S:
            return False
        del self.idle[oldest]
        oldest.transport.abort()  # `close` would wait for a client that does not read its last answer
        return True


class ConnectionLimit:
    """How many connections a process serves (`serves`), and how many more it keeps open to refuse them (`lingers`)."""

    def __init__(self, max_connections: int, num_other_files: int = 0) -> None:
        """Raises the process' soft limit of open files as far as it may, and stays below the result.

        `num_other_files`: what else it may open at once (connections to an engine), beyond `RESERVED_FILES`.
        """
        reserved = RESERVED_FILES + num_other_files
        allowed = _raise_open_files(max_connections + reserved)
        reserved = min(reserved, allowed // 2)
        self.serves = min(max_connections, allowed - reserved)
        self.lingers = max(1, min(RESERVED_FILES, reserved) // LINGERING_SHARE)
        if self.serves < max_connections:
            logger.warning(
                "fewer connections than max_connections: this process may open too few files; raise the hard limit "
                "(ulimit -Hn, LimitNOFILE=)",
                extra={
                    "connections": self.serves,
                    "max_connections": max_connections,
                    "open_files": allowed,
                    "needed": max_connections + RESERVED_FILES + num_other_files,
                },
            )

    def apply(self, kind: type[Kind], **limits: float) -> type[Kind]:
        """The protocol class for uvicorn's `http` option: `kind` with this limit, and with `limits` of its own."""
        ours = {"max_connections": self.serves, "max_lingering": self.lingers}
        return type(f"Limited{kind.__name__}", (kind,), {**ours, **limits})


def _raise_open_files(wanted: int) -> int:
    """Raise the soft limit to `wanted`, or to the hard limit. Returns the soft limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            soft = aim
        except (ValueError, OSError) as error:  # a container may forbid it
            logger.warning("the limit of open files cannot be raised: %s", error)
    return wanted if soft == resource.RLIM_INFINITY else soft


class Acceptor:
    """Accepts connections from `listener`, up to `per_turn` in a turn of the loop; `factory` makes each one's protocol.

    While `room()` is 0, connections wait in the kernel. uvicorn calls `close` and `wait_closed`, as on its own servers.
    """

    def __init__(
        self,
        listener: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        room: Callable[[], int],
        per_turn: int = ACCEPTS_PER_TURN,
    ) -> None:
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._factory = factory
        self._room = room
        self._per_turn = per_turn
        self._connecting: set[asyncio.Task[Any]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._has_failed = False
        self._start()

    def close(self) -> None:
        """Accept what has arrived so far, then stop: the kernel resets the connections that it still holds."""
        if self._again is None:
            while self._take() == self._per_turn:
                pass
        self._stop()

    async def wait_closed(self) -> None:
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _start(self) -> None:
        self._again = None
        self._loop.add_reader(self._listener.fileno(), self._take)

    def _stop(self) -> None:
        if self._again is not None:
            self._again.cancel()
        elif self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())

    def _pause(self, for_s: float) -> None:
        """Stop watching the listener for a while: with connections that are not accepted it is always readable."""
        self._stop()
        self._again = self._loop.call_later(for_s, self._start)

    def _take(self) -> int:
        """Accept the connections that are there and have room. Returns how many."""
        num = min(self._per_turn, self._room() - len(self._connecting))
        if num <= 0:
            self._pause(FULL_S)
            return 0
        for taken in range(num):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return taken
            except OSError as error:
                if not self._has_failed:
                    logger.error("connections wait, as they cannot be accepted: %s", error.strerror)
                self._has_failed = True
                self._pause(FAILED_S)
                return taken
            self._has_failed = False
            accepted.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._factory, accepted))
            self._connecting.add(task)
            task.add_done_callback(self._on_connected)
        return num

    def _on_connected(self, task: asyncio.Task[Any]) -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
            raise error  # a bug; the loop reports it. An OSError: the client has left


def accepts_per_turn(num_processes: int) -> int:
    """The number for each of several processes on one listener: the first to wake must not accept all connections."""
    return max(MIN_ACCEPTS_PER_TURN, ACCEPTS_PER_TURN // num_processes)
