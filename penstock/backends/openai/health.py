"""Health checks: of every replica that has one at the start, and after that of idle and ejected ones.

Requests check a replica that works. One without a request for a while is checked, so that readiness and metrics show an
engine that is down before a request meets it; and so is one whose 500 may be its own fault or the request's. An ejected
one is let back in when its check passes and a first request, the trial, succeeds; without a check the trial alone
decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from penstock.backends.openai.http import UpstreamHttp
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.upstreams import Upstreams

logger = logging.getLogger("penstock.backends")

MAX_SLEEP_S = 5.0
IDLE_S = 10.0  # without an answer, until a replica is checked
AGAIN_S = 1.0  # after a check that failed, and between those of a replica in doubt
MAX_MISSES = 2  # such checks in a row; one may fail because others keep the engine busy


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
        await self._check(checked, is_first=True)
        while True:
            now = time.monotonic()
            next_at = min(due_at(one) for _, one in checked)
            await self._upstreams.changed(min(MAX_SLEEP_S, max(0.05, next_at - now)))
            now = time.monotonic()
            await self._check([(tier, one) for tier, one in checked if due_at(one) <= now])

    async def _check(self, due: list[tuple[Tier, Replica]], *, is_first: bool = False) -> None:
        begun_at = time.monotonic()
        found = await asyncio.gather(*(self._is_well(tier, one) for tier, one in due))
        for (_, one), is_well in zip(due, found, strict=True):
            if one.breaker.is_open:
                one.known_at = time.monotonic()
                self._upstreams.checked(one, is_well=is_well)
            elif is_first or one.known_at < begun_at:  # else a request has been answered meanwhile
                one.known_at = time.monotonic()
                one.num_misses = 0 if is_well else one.num_misses + 1
                one.is_doubted = one.is_doubted and not is_well
                if not is_well and (is_first or one.num_misses >= MAX_MISSES):
                    self._upstreams.checked(one, is_well=False)

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


def due_at(replica: Replica) -> float:
    """When to check it next, unless something changes; infinity while requests check it, or a trial does."""
    breaker = replica.breaker
    if breaker.is_open and not breaker.is_checked:
        return breaker.until
    if replica.num_open and not replica.is_doubted:
        return math.inf
    return replica.known_at + (AGAIN_S if replica.num_misses or replica.is_doubted else IDLE_S)
