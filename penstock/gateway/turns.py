"""Turns at what may be large to read: of each caller a few at once, the others wait.

It bounds what one caller makes this gateway read and hold at a time. Those who wait are bounded by the connections that
the gateway accepts, and by time: when a gateway has died, thousands of streams of one caller may be resumed at another
one in the same instant, and each of them must get its turn. Knows nothing of what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.errors import RateLimited

AT_ONCE = 4
WAIT_S = 20.0
RETRY_S = 1.0


class _Line:
    __slots__ = ("free", "num")

    def __init__(self) -> None:
        self.num = 0
        self.free = asyncio.Semaphore(AT_ONCE)


class Turns:
    """Callers without a turn are not remembered."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Callers that have a turn or wait for one."""
        return len(self._lines)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the block. `RateLimited` when none came within `wait_s`."""
        line = self._lines.setdefault(caller, _Line())
        line.num += 1
        try:
            await self._enter(line)
            try:
                yield
            finally:
                line.free.release()
        finally:
            line.num -= 1
            if not line.num:
                del self._lines[caller]

    async def _enter(self, line: _Line) -> None:
        if not line.free.locked():  # the usual case needs no timer
            await line.free.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_s):
                await line.free.acquire()
        except TimeoutError:
            message = (
                f"{AT_ONCE} reads of a caller run at once in a gateway, and this one has waited {self._wait_s:g} s."
            )
            raise RateLimited(message, retry_after_s=RETRY_S) from None
