"""Health checks: of every replica that has one at the start, and after that of ejected ones only.

Requests check a replica that works. An ejected one is let back in when its check passes and a first request, the
trial, succeeds; without a check the trial alone decides.
"""

from __future__ import annotations

import asyncio
import logging
import time

from penstock.backends.openai.http import UpstreamHttp
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.upstreams import Upstreams

logger = logging.getLogger("penstock.backends")

MAX_SLEEP_S = 5.0


class Health:
    def __init__(self, upstreams: Upstreams, http: UpstreamHttp, path: str | None) -> None:
        """`path` instead of the engines' own."""
        self._upstreams = upstreams
        self._http = http
        self._path = path
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        checked = [(tier, one) for tier, one in self._upstreams.replicas() if one.breaker.has_check]
        if checked:
            self._task = asyncio.create_task(self._run(checked), name="upstream-health")
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, checked: list[tuple[Tier, Replica]]) -> None:
        due = checked
        while True:
            if due:
                found = await asyncio.gather(*(self._is_well(tier, one) for tier, one in due))
                for (_, one), is_well in zip(due, found, strict=True):
                    if is_well is False or one.breaker.is_open:
                        self._upstreams.checked(one, is_well=is_well)
            now = time.monotonic()
            next_at = min((one.breaker.until for _, one in checked if one.breaker.is_open), default=now + MAX_SLEEP_S)
            await self._upstreams.changed(min(MAX_SLEEP_S, max(0.05, next_at - now)))
            now = time.monotonic()
            due = [(tier, one) for tier, one in checked if one.breaker.wants_check(now)]

    async def _is_well(self, tier: Tier, replica: Replica) -> bool:
        return await self._http.is_well(tier, replica, self._path or tier.engine.health)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Without checks no ejected replica would come back: from now on trials alone decide."""
        if task.cancelled():
            return
        logger.error("the health checks have ended in a bug", exc_info=task.exception())
        for _, one in self._upstreams.replicas():
            one.breaker.has_check, one.breaker.is_checked = False, True
        self._upstreams.ring()
