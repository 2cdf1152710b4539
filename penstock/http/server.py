"""uvicorn's server with an acceptor of ours. Leaves the signals to its owner; knows no route."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, cast

import uvicorn

from penstock.http.http1 import Http1Connection
from penstock.http.listener import ACCEPTS_PER_TURN, Acceptor, OpenConnections


class HttpServer(uvicorn.Server):
    """Needs a `Config` whose `http` is a class that `ConnectionLimit.apply` made of an `Http1Connection`."""

    accepts_per_turn = ACCEPTS_PER_TURN

    def __init__(self, config: uvicorn.Config) -> None:
        self._ending = asyncio.Event()
        super().__init__(config)
        self.state = self.server_state = OpenConnections()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on `sockets` ourselves, many connections a turn of the loop."""
        await super().startup(sockets=[])
        kind = cast(type[Http1Connection], self.config.http_protocol_class)

        def connection() -> Http1Connection:
            return kind(self.config, self.state, self.lifespan.state)

        def room() -> int:
            return kind.max_connections + kind.max_lingering - len(self.state.connections)

        servers: list[Any] = self.servers
        servers += [Acceptor(listener, connection, room, self.accepts_per_turn) for listener in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.state.is_closing = True
        await super().shutdown(sockets)

    # The next three tick once a second instead of ten times, and end without a tick; `uvicorn_inside` has the figures.

    @property
    def should_exit(self) -> bool:
        return self._ending.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._ending.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(1.0):
                    await self._ending.wait()
            except TimeoutError:
                continue

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
