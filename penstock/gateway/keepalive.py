"""One slow clock for all open streams: keep-alive comments, and an end to clients that stopped reading.

A timer for each wait and each write would cost more than the token that it guards; this looks at every open stream
twice a second instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

HEALTH_CHECK_S = 0.5


class StreamHealth:
    """The state of one stream for `Keepalive`: the time of the last write, and since when a write is stuck."""

    __slots__ = ("_seen", "_stuck_since", "abort", "is_due", "is_sending", "num_sent", "wake", "was_cut", "written_at")

    def __init__(self, wake: Callable[[], None], abort: Callable[[], None]) -> None:
        self.wake = wake
        self.abort = abort
        self.is_sending = False
        self.is_due = False
        self.was_cut = False
        self.num_sent = 0
        self.written_at = time.monotonic()
        self._seen = -1
        self._stuck_since = 0.0

    def check(self, now: float, keepalive_s: float, slow_reader_s: float) -> None:
        """`is_due`: nothing was written for `keepalive_s`. A connection is cut when a write takes `slow_reader_s`."""
        if self.num_sent != self._seen:
            self._seen = self.num_sent
            self._stuck_since = self.written_at = now
        elif self.is_sending:
            if now - self._stuck_since >= slow_reader_s and not self.was_cut:
                self.was_cut = True
                self.abort()
        elif now - self.written_at >= keepalive_s:
            self.is_due = True
            self.wake()


class Keepalive:
    """All open streams of one gateway."""

    def __init__(self, keepalive_s: float, slow_reader_s: float) -> None:
        self._keepalive_s = keepalive_s
        self._slow_reader_s = slow_reader_s
        self.watched: set[StreamHealth] = set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(HEALTH_CHECK_S)
            now = time.monotonic()
            for health in list(self.watched):
                health.check(now, self._keepalive_s, self._slow_reader_s)
