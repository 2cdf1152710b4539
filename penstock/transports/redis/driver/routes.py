"""Which connection a key's commands take: to the one server, to the current master, or to a node of a cluster.

Four connections for one server (commands, blocking ones, large replies, the subscription), each made at its first
use; in a cluster the first three for each node that is used. Knows slots and addresses, not what commands mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.transports.redis.driver.cluster import Cluster, slot_of
from penstock.transports.redis.driver.command import Argument
from penstock.transports.redis.driver.connection import Connection, ServerConnection
from penstock.transports.redis.driver.endpoint import Deployment, Endpoint, Locator
from penstock.transports.redis.driver.link import StoreMetrics
from penstock.transports.redis.driver.nodes import Nodes
from penstock.transports.redis.driver.sentinel import Sentinels
from penstock.transports.redis.driver.subscriber import Subscriber


class Routes(Protocol):
    """The connections of one transport, each made at its first use."""

    is_one_server: bool  # whatever the key

    def to(self, key: str) -> Connection:
        """For commands on `key`."""

    def blocking(self, key: str) -> Connection:
        """For commands on `key` that block. It needs no scripts."""

    def bulk(self, key: str) -> Connection:
        """For reads on `key` whose replies may be large: nothing else waits behind them."""

    @property
    def subscriber(self) -> Subscriber: ...

    async def every(self) -> list[Connection]:
        """One for each server that holds keys."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...


def routes_of(deployment: Deployment, metrics: StoreMetrics, preload: Sequence[tuple[Argument, ...]] = ()) -> Routes:
    """`preload`: commands that each connection for other commands begins with."""
    if deployment.kind == "cluster":
        return ClusterRoutes(deployment, metrics, preload)
    if deployment.kind == "sentinel":
        return SentinelRoutes(deployment, metrics, preload)
    return ServerRoutes(deployment.known[0], metrics, preload)


class ServerRoutes:
    """All to one server. When that is no longer the right one, every connection to it is broken: a subscription to a
    demoted master would receive nothing and report no error."""

    is_one_server = True

    def __init__(self, locator: Locator, metrics: StoreMetrics, preload: Sequence[tuple[Argument, ...]]) -> None:
        self._commands = ServerConnection(locator, "penstock", metrics, preload, self._moved)
        self._blocking = ServerConnection(locator, "penstock-blocking", metrics, (), self._moved)
        self._bulk = ServerConnection(locator, "penstock-bulk", metrics, preload, self._moved)
        self._subscriber = Subscriber(locator, "penstock-subscriber", metrics)

    def to(self, key: str) -> Connection:
        return self._commands

    def blocking(self, key: str) -> Connection:
        return self._blocking

    def bulk(self, key: str) -> Connection:
        return self._bulk

    @property
    def subscriber(self) -> Subscriber:
        return self._subscriber

    async def every(self) -> list[Connection]:
        return [self._commands]

    async def open(self) -> None:
        await self._commands.connect()

    async def close(self) -> None:
        await self._subscriber.close()
        await self._blocking.close()
        await self._bulk.close()
        await self._commands.close()

    def _moved(self, to: Endpoint | None) -> None:
        for way in (self._commands, self._blocking, self._bulk, self._subscriber):
            way.redial("the server is not the one to write to any more", unless=to)


class SentinelRoutes(ServerRoutes):
    """All to the master that the sentinels name."""

    def __init__(self, deployment: Deployment, metrics: StoreMetrics, preload: Sequence[tuple[Argument, ...]]) -> None:
        self._sentinels = Sentinels(deployment, metrics, self._moved)
        super().__init__(self._sentinels, metrics, preload)

    async def close(self) -> None:
        await self._sentinels.close()
        await super().close()


class ClusterRoutes:
    """Each key to the node that serves its slot. The subscription is at any node: a cluster passes messages on."""

    is_one_server = False

    def __init__(self, deployment: Deployment, metrics: StoreMetrics, preload: Sequence[tuple[Argument, ...]]) -> None:
        self._cluster = Cluster(deployment.known, metrics, self._changed)
        self._commands = Nodes(self._cluster, "penstock", metrics, preload)
        self._blocking = Nodes(self._cluster, "penstock-blocking", metrics)
        self._bulk = Nodes(self._cluster, "penstock-bulk", metrics, preload)
        self._subscriber = Subscriber(self._cluster, "penstock-subscriber", metrics)

    def to(self, key: str) -> Connection:
        return self._commands.to(slot_of(key))

    def blocking(self, key: str) -> Connection:
        return self._blocking.to(slot_of(key))

    def bulk(self, key: str) -> Connection:
        return self._bulk.to(slot_of(key))

    @property
    def subscriber(self) -> Subscriber:
        return self._subscriber

    async def every(self) -> list[Connection]:
        await self._cluster.refresh()
        return [self._commands.at(master) for master in self._cluster.masters]

    async def open(self) -> None:
        await self._cluster.refresh()

    async def close(self) -> None:
        await self._subscriber.close()
        await self._cluster.close()
        await self._blocking.close()
        await self._bulk.close()
        await self._commands.close()

    def _changed(self) -> None:
        masters = self._cluster.masters
        self._commands.keep(masters)
        self._blocking.keep(masters)
        self._bulk.keep(masters)
        if self._subscriber.endpoint not in masters:
            self._subscriber.redial("the node is no longer a master")
