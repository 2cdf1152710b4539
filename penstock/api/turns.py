"""Turns at what may be large to read: of each caller a few at once, a few more that wait, and no more.

It bounds what one caller makes this gateway read and hold at a time. Pure; knows nothing of what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.errors import RateLimited

AT_ONCE = 2
WAITING = 64
RETRY_S = 1.0


class _Line:
    __slots__ = ("free", "num")

    def __init__(self) -> None:
        self.num = 0
        self.free = asyncio.Semaphore(AT_ONCE)


class Turns:
    """Callers without a turn are not remembered."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Callers that have a turn or wait for one."""
        return len(self._lines)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the block. `RateLimited` where too many of this caller wait already."""
        line = self._lines.setdefault(caller, _Line())
        if line.num >= AT_ONCE + WAITING:
            message = f"At most {AT_ONCE} reads of a caller run at once in a gateway, and {WAITING} more may wait."
            raise RateLimited(message, retry_after_s=RETRY_S)
        line.num += 1
        try:
            async with line.free:
                yield
        finally:
            line.num -= 1
            if not line.num:
                del self._lines[caller]
