"""Asks the sentinels where the master is, and subscribes to their messages on a change.

One that is down or does not know the service is passed over; each question starts with the next one, so that one with
an old view is not asked again and again. The subscription matters because a master that was only replaced, and lives,
accepts writes for several seconds before the sentinels make it a replica: all of them would be lost. Knows nothing of
what is done with the answer; the connection checks it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.endpoint import Deployment, Endpoint
from penstock.transports.redis.driver.link import StoreMetrics, ask_once
from penstock.transports.redis.driver.subscriber import Subscriber

log = logging.getLogger(__name__)

SWITCHED = "+switch-master"  # service, old host, old port, new host, new port


class _Turns:
    """The sentinels, each in its turn."""

    def __init__(self, sentinels: tuple[Endpoint, ...]) -> None:
        self._sentinels = deque(sentinels)

    def __str__(self) -> str:
        return f"the sentinels {', '.join(map(str, self._sentinels))}"

    async def locate(self) -> Endpoint:
        self._sentinels.rotate(-1)
        return self._sentinels[-1]

    def each(self) -> tuple[Endpoint, ...]:
        """All, in an order of the caller's own: of turns shared by two callers at once, one could miss a sentinel."""
        self._sentinels.rotate(-1)
        return tuple(self._sentinels)


class Sentinels:
    """A `Locator` of the master of one service. `on_moved` is called with the new one."""

    def __init__(self, deployment: Deployment, metrics: StoreMetrics, on_moved: Callable[[Endpoint], None]) -> None:
        self._master = deployment.master
        self._service = deployment.service
        self._turns = _Turns(deployment.known)
        self._metrics = metrics
        self._on_moved = on_moved
        self._news = Subscriber(_Turns(deployment.known), "penstock-news", metrics)
        self._watching: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"the master of {self._service!r}"

    async def locate(self) -> Endpoint:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="redis-sentinel")
        failures: list[str] = []
        for sentinel in self._turns.each():
            try:
                address = await ask_once(sentinel, self._metrics, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except StoreUnavailable as error:
                failures.append(error.message)
                continue
            if address is not None:
                return self._master.at(address[0].decode(), int(address[1]))
            failures.append(f"{sentinel} does not know it")
        raise StoreUnavailable(f"Redis is away: no sentinel names {self}: {'; '.join(failures)}")

    async def close(self) -> None:
        tasks = [task for task in (self._watching, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._news.close()

    # ── below ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        try:
            await self._news.subscribe(SWITCHED, self._heard, self._missed)
        except StoreUnavailable as error:  # it keeps trying, and then reports that messages were missed
            log.warning("no sentinel names a new master: %s", error.message)
        else:
            await self._look()

    def _heard(self, _channel: bytes, message: bytes) -> None:
        service, _, _, host, port = message.decode().split(" ")
        if service == self._service:
            self._on_moved(self._master.at(host, int(port)))

    def _missed(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="redis-sentinel-look")

    async def _look(self) -> None:
        try:
            self._on_moved(await self.locate())
        except StoreUnavailable as error:  # the next connection asks again
            log.debug("the master was not asked for: %s", error.message)
