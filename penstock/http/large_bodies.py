"""Large bodies: parsed, validated and translated in one thread, in turn, so that the event loop is not blocked.

One thread, as Python runs one at a time anyway; the callers take turns, so that one who sends many waits for himself.
A usual body never comes here: it is done on the loop before a thread could have begun. Also here: how many bytes of
bodies a process holds at once, from their arrival until they are read. Knows nothing of what is read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from penstock.errors import Overloaded
from penstock.http.body_json import num_marks

LARGE_BYTES = 32 * 1024
LARGE_VALUES = 1000  # about a millisecond
MAX_WAITING = 64  # each holds a body in memory
MAX_WAITING_OF_ONE = 16
SMALL_BYTES = 1024 * 1024  # up to here a body is bounded by the number of those that wait
MAX_HELD_BYTES = 256 * 1024 * 1024  # of larger ones
MAX_HELD_BYTES_OF_ONE = 64 * 1024 * 1024

T = TypeVar("T")


def is_large(body: bytes) -> bool:
    """More than the event loop may do in one go: by its size, or by the number of values that it may hold."""
    return len(body) > LARGE_VALUES and (len(body) > LARGE_BYTES or num_marks(body) > LARGE_VALUES)


class Room:
    """The memory that one body takes until it is read: `hold` its size, and leave the block."""

    __slots__ = ("_bodies", "_caller", "_num_bytes")

    def __init__(self, bodies: LargeBodies, caller: str) -> None:
        self._bodies = bodies
        self._caller = caller
        self._num_bytes = 0

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        if self._num_bytes:
            self._bodies.add_held(self._caller, -self._num_bytes)

    def hold(self, num_bytes: int) -> Overloaded | None:
        """The body has at least so many bytes. Returns the error if it does not fit in; one always does."""
        more = num_bytes - self._num_bytes
        if num_bytes <= SMALL_BYTES or more <= 0:
            return None
        of_one, of_all = self._bodies.num_held(self._caller)
        others_of_one, others = of_one - self._num_bytes, of_all - self._num_bytes
        if (others_of_one and of_one + more > MAX_HELD_BYTES_OF_ONE) or (others and of_all + more > MAX_HELD_BYTES):
            most = f"{MAX_HELD_BYTES} bytes of all (MAX_HELD_BYTES), {MAX_HELD_BYTES_OF_ONE} of one caller"
            return Overloaded(
                f"Too many large bodies arrive: at most {most} (MAX_HELD_BYTES_OF_ONE).", retry_after_s=1.0
            )
        self._bodies.add_held(self._caller, more)
        self._num_bytes = num_bytes
        return None


class LargeBodies:
    """The one thread of a gateway process, who waits for it, and how many bytes they hold."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-body")
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._num_waiting = 0
        self._is_busy = False
        self._held: dict[str, int] = {}
        self._num_held = 0

    def room(self, caller: str) -> Room:
        """For one body of this caller."""
        return Room(self, caller)

    def num_held(self, caller: str) -> tuple[int, int]:
        """Bytes of larger bodies: of this caller, and of all."""
        return self._held.get(caller, 0), self._num_held

    def add_held(self, caller: str, num_bytes: int) -> None:
        self._num_held += num_bytes
        held = self._held.pop(caller, 0) + num_bytes
        if held:
            self._held[caller] = held

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Run `work` in the thread when it is the caller's turn, and return its result. Raises `Overloaded`."""
        if self._is_busy:
            await self._wait(caller)
        self._is_busy = True
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        line = self._lines.get(caller, ())
        if len(line) >= MAX_WAITING_OF_ONE or self._num_waiting >= MAX_WAITING:
            most = f"{MAX_WAITING} of all (MAX_WAITING), {MAX_WAITING_OF_ONE} of one caller (MAX_WAITING_OF_ONE)"
            raise Overloaded(f"Too many large bodies wait to be read: at most {most}.", retry_after_s=1.0)
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(caller, deque()).append(turn)
        self._num_waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was just given the thread, and does not need it
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The thread to the next one that waits: the callers in turn, each one's bodies in their order."""
        self._is_busy = False
        while self._lines and not self._is_busy:
            caller, line = self._lines.popitem(last=False)
            turn = line.popleft()
            self._num_waiting -= 1
            if line:
                self._lines[caller] = line  # behind all others
            if not turn.done():
                turn.set_result(None)
                self._is_busy = True
