"""The side of a server that takes connections in: how many a turn of the loop, how many at all. Knows nothing of HTTP.

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
FULL_S = 0.05  # until the next look, where not even a connection to refuse has room
FAILED_S = 1.0  # the same after the system has refused to hand one over, mostly for want of a file
EVICT_AFTER_S = 1.0  # a newer connection may be about to send its first request
RESERVED_FILES = 256  # for everything that is not a client's connection, and for those that read their refusal
LINGERING_SHARE = 4  # the part of them that those may use: one in so many


Kind = TypeVar("Kind", bound=asyncio.Protocol)


class Connected(Protocol):
    """A connection, as far as it is known here."""

    transport: asyncio.Transport


class OpenConnections(ServerState):
    """What all connections of one server share. `idle`: those without a request, the longest idle first, and since
    when (the loop's clock, seconds). `is_closing`: a connection that comes now is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[Connected, float] = {}
        self.is_closing = False

    def evict_one(self, now: float) -> bool:
        """Close the connection that has been idle longest, so that those that ask nothing cannot shut others out."""
        oldest = next(iter(self.idle), None)
        if oldest is None or now - self.idle[oldest] < EVICT_AFTER_S:
            return False
        del self.idle[oldest]
        oldest.transport.abort()  # one with an answer that its client does not read would stay while it is closing
        return True


class Limit:
    """How many connections a process serves: `serves`, and how many more it holds to refuse them: `lingers`."""

    def __init__(self, max_connections: int, num_other_files: int = 0) -> None:
        """Raises the process' soft limit of open files as far as it may, and stays below what it is then.

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
    """Raise the soft limit to `wanted`, or to the hard one; what it is then."""
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
    """Takes connections from `listener` and gives each a protocol of `factory`, up to `per_turn` a turn of the loop.

    While `room()` is 0 they wait in the kernel. Has what uvicorn wants of a server: `close` and `wait_closed`.
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
        """Take what has come so far, and no more: a connection that is left in the kernel would be reset."""
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
        """A listener with connections that are not taken is ready all the time: it must not be watched."""
        self._stop()
        self._again = self._loop.call_later(for_s, self._start)

    def _take(self) -> int:
        """Accept what is there and has room; how many."""
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
    """Of processes that share a listener, the first to wake must not take all that has come."""
    return max(MIN_ACCEPTS_PER_TURN, ACCEPTS_PER_TURN // num_processes)
