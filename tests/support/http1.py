"""A connection without a network: what a client sends in the pieces that it chooses, and what it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import uvicorn

from penstock.http.connection import GatewayConnection
from penstock.http.http1 import Http1Connection
from penstock.http.listener import OpenConnections

App = Callable[[Any, Any, Any], Awaitable[None]]


class Wire(asyncio.Transport):
    """The server's end of a connection; `sent` is what the client would read."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 50000), "sockname": ("192.0.2.2", 8000)})
        self.sent = b""
        self.is_paused = False
        self.has_ended = False
        self._is_closing = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        assert not self.has_ended, "a write after the end of writing"
        if not self._is_closing:
            self.sent += bytes(data)

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Peer:
    """A client of `app` over a connection of class `kind`. `seen`: one entry a request that reached the app."""

    def __init__(self, kind: type[Http1Connection] = GatewayConnection, state: OpenConnections | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.wire = Wire()
        config = uvicorn.Config(
            self._app, interface="asgi3", log_config=None, lifespan="off", ws="none", access_log=False
        )
        self.protocol = kind(config, state or OpenConnections(), {}, asyncio.get_running_loop())
        self.wire.protocol = self.protocol
        self.protocol.connection_made(self.wire)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.gate.wait()
        headers = sorted((name.decode(), value.decode()) for name, value in scope["headers"])
        self.seen.append({"method": scope["method"], "path": scope["path"], "headers": headers, "body": body.decode()})
        answer = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]}
        )
        await send({"type": "http.response.body", "body": answer})

    async def send(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if self.wire.is_closing():
                return
            self.protocol.data_received(piece)
            await self.rest(2)

    async def rest(self, turns: int = 20) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        return [(one["method"], one["path"], one["body"]) for one in self.seen]

    @property
    def statuses(self) -> list[int]:
        return statuses(self.wire.sent)

    def close(self) -> None:
        self.wire.close()


def statuses(answers: bytes) -> list[int]:
    """Of answers that follow one another and have a content-length."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 "), lines[0]
        status = int(lines[0].split()[1])
        if status != 100:
            found.append(status)
            length = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")]
            answers = answers[length[0] :]
    return found
