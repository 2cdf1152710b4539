"""Writes to the store, in batches, what ended requests take of their callers' shares.

Nothing waits for it, and one script for many requests costs much less than one for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.transports.redis import scripts
from penstock.transports.redis.driver.command import Command
from penstock.transports.redis.scripts import Weight

WITHIN_S = 0.02
MAX_AT_ONCE = 100


class Weighing:
    """`post(caller, command)` sends on the caller's slot."""

    def __init__(self, post: Callable[[str, Command], None]) -> None:
        self._post = post
        self._of: dict[str, list[Weight]] = {}
        self._num = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, caller: str, weight: Weight) -> None:
        """Post it within `WITHIN_S`."""
        self._of.setdefault(caller, []).append(weight)
        self._num += 1
        if self._num >= MAX_AT_ONCE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self.flush)

    def flush(self) -> None:
        """Post all pending weights now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._of, self._num = self._of, {}, 0
        for caller, weights in waiting.items():
            self._post(caller, scripts.weigh(caller, weights))
