"""Connections to Redis that open at the first use and reconnect by themselves.

`Connection` is the interface; a `ServerConnection` leads to one server, at whatever address that has now.
Knows nothing of keys, scripts or jobs, and of several servers only that an address may change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.endpoint import Endpoint, Locator
from penstock.transports.redis.driver.link import Link, Reply, StoreMetrics, let_in

COMMAND_TIMEOUT_S = 5.0
MAX_BACKOFF_S = 0.5


class Connection(Protocol):
    """The target of commands. Two keys with the same `Connection` are at one server, as far as is known."""

    async def execute(self, data: bytes, count: int, timeout_s: float = COMMAND_TIMEOUT_S) -> list[Reply]:
        """Send packed commands, return their `count` replies in order. An error reply is a reply, not raised."""

    async def connect(self) -> Link:
        """The open link, or a new one. A new one may lead to another server, or to one with an older state."""

    @property
    def link(self) -> Link | None:
        """The open link, if there is one."""

    def post(self, data: bytes, count: int) -> None:
        """Send packed commands whose replies are discarded; nothing is sent without a connection."""


class ServerConnection:
    """Commands to one server over one link (single flight).

    `on_moved` is called with None when the server replies that it is no longer the right one, and with the new
    `Endpoint` when another one was found in its place.
    """

    def __init__(
        self,
        locator: Locator,
        name: str,
        metrics: StoreMetrics,
        preload: Sequence[tuple[Any, ...]] = (),
        on_moved: Callable[[Endpoint | None], None] | None = None,
    ) -> None:
        self._locator = locator
        self._name = name
        self._metrics = metrics
        self._preload = preload
        self._on_moved = on_moved
        self._endpoint: Endpoint | None = None
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._backoff_s = 0.0
        self._is_closed = False

    @property
    def link(self) -> Link | None:
        return self._link if self._link is not None and self._link.is_open else None

    async def execute(self, data: bytes, count: int, timeout_s: float = COMMAND_TIMEOUT_S) -> list[Reply]:
        link = self._link
        if link is None or not link.is_open:
            link = await self.connect()
        return await link.send(data, count, timeout_s)

    def post(self, data: bytes, count: int) -> None:
        if self._link is not None:
            self._link.post(data, count, COMMAND_TIMEOUT_S)

    def send(self, data: bytes, count: int) -> asyncio.Future[list[Reply]] | None:
        """Send without connecting first; None if there is no connection."""
        if self._link is None or not self._link.is_open:
            return None
        return self._link.send(data, count, COMMAND_TIMEOUT_S)

    async def connect(self) -> Link:
        """The open link, or a new one. A failed attempt makes the next one wait a little."""
        if self._is_closed:
            raise StoreUnavailable("the transport is closed")
        if self._link is not None and self._link.is_open:
            return self._link
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="redis-connect")
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled() and self._is_closed:  # `close` ended the attempt; the caller was not cancelled
                raise StoreUnavailable("the transport is closed") from None
            raise

    def redial(self, reason: str, unless: Endpoint | None = None) -> None:
        """Break the connection, so that its server is looked for again; not if it leads to `unless`."""
        if self._link is not None and self._link.is_open and self._endpoint != unless:
            self._link.abort(reason, "moved")

    async def close(self) -> None:
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> Link:
        await asyncio.sleep(self._backoff_s)
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s or 0.02)
        link = Link(self._metrics)
        try:
            endpoint = await self._locator.locate()
            await let_in(endpoint, link, self._name, self._preload)
        except BaseException:
            link.close()
            raise
        self._link, self._backoff_s = link, 0.0
        before, self._endpoint = self._endpoint, endpoint
        if self._on_moved is not None:
            link.closed.add_done_callback(lambda _: self._lost(link))
            if before is not None and before != endpoint:
                self._on_moved(endpoint)
        return link

    def _lost(self, link: Link) -> None:
        if link.is_turned_away and self._on_moved is not None and not self._is_closed:
            self._on_moved(None)

    def _connected(self, task: asyncio.Task[Link]) -> None:
        self._connecting = None
        _ignore(task)  # its callers get the error as well; without this asyncio would report an abandoned one


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
