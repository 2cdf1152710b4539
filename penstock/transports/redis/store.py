"""What both halves of the transport stand on: the connections of one process, and one way to run commands on them.

Every command goes to `conn(key)`: today the one server, later the node that holds the key's slot. Turns error
replies into errors of our own. Knows nothing of what the commands mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from hiredis import ReplyError

from penstock.errors import InternalError, PenstockError, StoreUnavailable
from penstock.transports.redis.connection import Connection, NoMetrics, Reply, StoreMetrics
from penstock.transports.redis.endpoint import Endpoint
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.scripts import PRELOAD, Command
from penstock.transports.redis.subscription import Subscription

# Replies that say that Redis cannot do it now, not that we asked for nonsense.
_UNABLE = ("OOM", "MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN", "NOAUTH", "NOPERM", "UNKILLABLE", "EXECABORT")


class Refused(StoreUnavailable):
    """Redis is there and refused for now (memory, persistence, rights): asking again at once is of no use."""


def error_of(verb: str, reply: ReplyError) -> PenstockError:
    if str(reply).startswith(_UNABLE):
        return Refused(f"Redis refused to {verb}: {reply}")
    return InternalError(f"Redis could not {verb}: {reply}")


def is_out_of_memory(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("OOM")


class Store:
    """The connections of one transport: commands (joined writes), ears, and one that may block."""

    def __init__(self, endpoint: Endpoint, pool: PoolKeys, metrics: StoreMetrics | None) -> None:
        self.pool = pool
        self.metrics: StoreMetrics = metrics if metrics is not None else NoMetrics()
        self._endpoint = endpoint
        self._commands = Connection(endpoint, "penstock", self.metrics, PRELOAD)
        self._blocking: Connection | None = None
        self._ears: Subscription | None = None

    def conn(self, key: str) -> Connection:
        """The connection to the server that holds `key`."""
        return self._commands

    def request_conn(self, job_id: str) -> Connection:
        """The same for all keys of a request."""
        return self._commands

    @property
    def blocking(self) -> Connection:
        """For BLMOVE alone. It needs no scripts."""
        if self._blocking is None:
            self._blocking = Connection(self._endpoint, "penstock-blocking", self.metrics)
        return self._blocking

    @property
    def ears(self) -> Subscription:
        if self._ears is None:
            self._ears = Subscription(self._endpoint, "penstock-ears", self.metrics)
        return self._ears

    def hears(self, topic: str) -> bool:
        return self._ears is not None and self._ears.has(topic)

    async def open(self) -> None:
        await self._commands.connect()

    async def close(self) -> None:
        if self._ears is not None:
            await self._ears.close()
        if self._blocking is not None:
            await self._blocking.close()
        await self._commands.close()

    async def run(self, verb: str, key: str, *commands: Command) -> list[Reply]:
        """Run commands of one server in one pipeline; the first error reply is raised."""
        replies = await self.exchange(verb, self.conn(key), commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                self.metrics.store_error("refused")
                raise error_of(verb, reply)
        return replies

    async def run_each(self, verb: str, commands: Iterable[tuple[str, Command]]) -> list[Reply]:
        """Run commands of many slots: one pipeline for each server; replies in the order of the commands."""
        pairs = list(commands)
        groups: dict[Connection, list[int]] = {}
        for index, (key, _) in enumerate(pairs):
            groups.setdefault(self.conn(key), []).append(index)
        replies: list[Reply] = [None] * len(pairs)
        for indices in groups.values():
            got = await self.run(verb, pairs[indices[0]][0], *(pairs[index][1] for index in indices))
            for index, reply in zip(indices, got, strict=True):
                replies[index] = reply
        return replies

    async def ask(self, verb: str, key: str, command: Command) -> Reply:
        """Run one command."""
        return (await self.run(verb, key, command))[0]

    async def exchange(self, verb: str, conn: Connection, commands: tuple[Command, ...]) -> list[Reply]:
        """Run commands in one pipeline; error replies are returned, but a server that lacks a script is sent it."""
        started = time.perf_counter()
        if len(commands) == 1:
            data = commands[0].packed
        else:
            data = b"".join([command.packed for command in commands])
        replies = await conn.execute(data, len(commands))
        for index, reply in enumerate(replies):
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                again = commands[index].again
                if again is not None:
                    replies[index] = (await conn.execute(again, 1))[0]
        self.metrics.round_trip(verb, time.perf_counter() - started)
        return replies
