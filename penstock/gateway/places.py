"""The places in the queue, for all who ask: any number of askers share one look. Knows nothing of who asks."""

from __future__ import annotations

import asyncio
import time

from penstock.transports.base import OperatorStore

FRESH_S = 0.02


class Places:
    """`known`: as last seen, each waiting request's place, the next one 1."""

    def __init__(self, operators: OperatorStore) -> None:
        self._operators = operators
        self._looking: asyncio.Task[dict[str, int]] | None = None
        self._seen_at = float("-inf")
        self.known: dict[str, int] = {}

    async def look(self) -> dict[str, int]:
        """As they are now, or were a moment ago. Raises `StoreUnavailable`."""
        if self._looking is None:
            if time.monotonic() - self._seen_at < FRESH_S:
                return self.known
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, int]:
        try:
            waiting = await self._operators.waiting()
        finally:
            self._looking = None
        self.known = {job_id: place for place, job_id in enumerate(waiting, 1)}
        self._seen_at = time.monotonic()
        return self.known
