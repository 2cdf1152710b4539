"""A proxy between Penstock and the server that loses exactly one reply when told to: the command is executed, its
reply is not delivered, and the connection ends. It can also hold back what is published on some channels.

It follows both directions of the protocol: a reply belongs to the command at the same place. RESP2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque

from penstock.transports.redis.scripts import SCRIPTS

_NAMES = {script.sha1.encode(): script.name for script in SCRIPTS}
_GRACE_S = 0.02


def value_end(data: bytes | bytearray, at: int) -> int:
    """Where the RESP value that begins at `at` ends; -1 if it is not whole yet."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return -1
    kind, after = data[at : at + 1], line + 2
    if kind in (b"$", b"="):
        size = int(data[at + 1 : line])
        end = after if size < 0 else after + size + 2
        return end if end <= len(data) else -1
    if kind in (b"*", b"~", b">", b"%"):
        num = int(data[at + 1 : line]) * (2 if kind == b"%" else 1)
        for _ in range(num):
            after = value_end(data, after)
            if after < 0:
                return -1
    return after


def words(data: bytes | bytearray) -> list[bytes]:
    """The first few words of one whole command, an array of strings."""
    parts = bytes(data[:4096]).split(b"\r\n")
    return parts[2:8:2]


def name_of(command: bytes | bytearray) -> str:
    """A command's name; a script's name for EVALSHA."""
    first, *rest = words(command)
    name = first.decode("ascii", "replace").upper()
    if name in ("EVALSHA", "EVAL") and rest:
        return _NAMES.get(rest[0], name)
    return f"{name} {rest[0].decode('ascii', 'replace').upper()}" if name in ("SCRIPT", "CLIENT") and rest else name


class Proxy:
    """`seen` counts commands by name, `dropped` the replies lost. `mute` is a part of channels' names to hold back."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener: asyncio.Server | None = None
        self._pipes: set[_Pipe] = set()
        self._target = ""
        self._skip = 0
        self.fired = asyncio.Event()
        self.seen: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.mute = b""
        self.port = 0

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for pipe in list(self._pipes):
            pipe.cut()

    def drop(self, name: str, skip: int = 0) -> None:
        """Lose the reply of the next command of that name, after `skip` more; `fired` is set when it has happened."""
        self._target, self._skip = name, skip
        self.fired.clear()

    def disarm(self) -> None:
        self._target = ""

    def is_hit(self, name: str) -> bool:
        self.seen[name] += 1
        if name != self._target:
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._target = ""
        return True

    def hit(self, name: str) -> None:
        self.dropped[name] += 1
        self.fired.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe(self, (reader, writer), up)
        self._pipes.add(pipe)
        try:
            await pipe.run()
        finally:
            pipe.cut()
            self._pipes.discard(pipe)


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pipe:
    """One client's connection. `victims` are the places of the replies that must not arrive."""

    def __init__(self, proxy: Proxy, client: Ends, server: Ends) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._num_commands = 0
        self._num_replies = 0
        self._victims: deque[tuple[int, str]] = deque()
        self._is_subscribed = False

    async def run(self) -> None:
        tasks = {asyncio.create_task(self._down()), asyncio.create_task(self._up())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _down(self) -> None:
        """Commands to the server."""
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await self._client[0].read(65536):
                buffer += data
                at = 0
                while at < len(buffer) and (end := value_end(buffer, at)) > 0:
                    name = name_of(buffer[at:end])
                    self._is_subscribed = self._is_subscribed or "SUBSCRIBE" in name
                    if self._proxy.is_hit(name):
                        self._victims.append((self._num_commands, name))
                    self._num_commands += 1
                    at = end
                del buffer[:at]
                self._server[1].write(data)
                if self._is_subscribed and self._victims:
                    await asyncio.sleep(_GRACE_S)  # executed by now; what is pushed cannot be counted
                    self._proxy.hit(self._victims[0][1])
                    return
                await self._server[1].drain()

    async def _up(self) -> None:
        """Replies to the client, up to one that must not arrive."""
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while data := await self._server[0].read(65536):
                if self._is_subscribed and not self._proxy.mute:
                    if not self._victims:
                        self._client[1].write(bytes(buffer) + data)
                        buffer.clear()
                    continue
                buffer += data
                at = 0
                while at < len(buffer) and (end := value_end(buffer, at)) > 0:
                    if not self._is_subscribed and self._victims and self._victims[0][0] == self._num_replies:
                        self._client[1].write(bytes(buffer[:at]))
                        await self._client[1].drain()
                        self._proxy.hit(self._victims[0][1])
                        return
                    is_message = self._is_subscribed and b"message" in buffer[at : at + 24]
                    if is_message and self._proxy.mute and self._proxy.mute in buffer[at:end]:
                        del buffer[at:end]
                        continue
                    self._num_replies += 1
                    at = end
                self._client[1].write(bytes(buffer[:at]))
                del buffer[:at]
                await self._client[1].drain()
