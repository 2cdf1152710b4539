"""Asks the sentinels where the master is. Knows nothing of what is done with the answer; whoever connects checks it.

One that is down or does not know the service is passed over; each question starts with the next one, so that one with
an old view is not asked again and again.
"""

from __future__ import annotations

from collections import deque

from penstock.errors import StoreUnavailable
from penstock.transports.redis.endpoint import Deployment, Endpoint
from penstock.transports.redis.link import StoreMetrics, ask_once


class Sentinels:
    """A `Locator` of the master of one service."""

    def __init__(self, deployment: Deployment, metrics: StoreMetrics) -> None:
        self._master = deployment.master
        self._service = deployment.service
        self._sentinels = deque(deployment.known)
        self._metrics = metrics

    def __str__(self) -> str:
        return f"the master of {self._service!r}"

    async def locate(self) -> Endpoint:
        said: list[str] = []
        for _ in range(len(self._sentinels)):
            sentinel = self._sentinels[0]
            self._sentinels.rotate(-1)
            try:
                address = await ask_once(sentinel, self._metrics, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except StoreUnavailable as error:
                said.append(error.message)
                continue
            if address is not None:
                return self._master.at(address[0].decode(), int(address[1]))
            said.append(f"{sentinel} does not know it")
        raise StoreUnavailable(f"Redis is away: no sentinel names {self}: {'; '.join(said)}")
