"""A small HTTP/1.1 client on asyncio's streams, one connection a request: what many clients at once cost least with.

It can leave without a word, which a polite client library cannot. Knows nothing of Penstock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

import msgspec

CONNECT_S = 5.0
HEAD_S = 60.0
READ_S = 90.0


class Cut(Exception):
    """The connection ended before the answer did. `is_sent`: the request may have been read."""

    def __init__(self, why: str, is_sent: bool = True) -> None:
        super().__init__(why)
        self.is_sent = is_sent


class Exchange:
    """One request and its answer; a context manager. `status` and `headers` are there once entered."""

    def __init__(
        self, url: str, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._host, self._port = host, int(port)
        data = b"" if body is None else msgspec.json.encode(body)
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close", f"content-length: {len(data)}"]
        if data:
            lines.append("content-type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._request = "\r\n".join([*lines, "", ""]).encode() + data
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Exchange:
        await self.send()
        try:
            await self.receive_head()
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.leave()

    async def send(self) -> None:
        """Connect and send. Raises `Cut`."""
        try:
            async with asyncio.timeout(CONNECT_S):
                self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=256 * 1024)
        except (OSError, TimeoutError) as error:
            raise Cut(f"cannot connect: {error!r}", is_sent=False) from error
        self._writer.write(self._request)

    async def receive_head(self) -> None:
        """Raises `Cut`."""
        try:
            async with asyncio.timeout(HEAD_S):
                head = await self._reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise Cut(f"no answer: {error!r}") from error
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Cut` where it ends too soon, and after `READ_S` of silence."""
        try:
            if "content-length" in self.headers:
                async with asyncio.timeout(READ_S):
                    yield await self._reader.readexactly(int(self.headers["content-length"]))
                return
            while True:
                async with asyncio.timeout(READ_S):
                    size = int(await self._reader.readuntil(b"\r\n"), 16)
                    data = await self._reader.readexactly(size + 2)
                if not size:
                    return
                yield data[:-2]
        except (OSError, asyncio.IncompleteReadError, ValueError, TimeoutError) as error:
            raise Cut(f"the answer broke off: {error!r}") from error

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    def leave(self) -> None:
        """Hang up, without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


async def get(url: str, path: str) -> tuple[int, bytes]:
    async with Exchange(url, "GET", path) as exchange:
        return exchange.status, await exchange.read()


async def post(url: str, path: str, body: object) -> tuple[int, bytes]:
    async with Exchange(url, "POST", path, body) as exchange:
        return exchange.status, await exchange.read()
