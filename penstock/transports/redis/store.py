"""What both halves of the transport stand on: the connections of one process, and one way to run commands on them.

Every command goes to `conn(key)`: the one server, or the node that holds the key's slot. Turns error replies into
errors of our own. Knows nothing of what the commands mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final

from hiredis import ReplyError

from penstock.errors import InternalError, PenstockError, StoreUnavailable
from penstock.transports.redis import keys
from penstock.transports.redis.connection import Connection
from penstock.transports.redis.endpoint import Deployment
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.link import NoMetrics, Reply, StoreMetrics
from penstock.transports.redis.routes import routes_of
from penstock.transports.redis.scripts import Command
from penstock.transports.redis.subscription import Subscription

# Replies that say that Redis cannot do it now, not that we asked for nonsense.
_UNABLE = ("OOM", "MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN", "NOAUTH", "NOPERM", "UNKILLABLE", "EXECABORT")

MISS_AFTER_S = 1.0
MISSED: Final = object()


class Refused(StoreUnavailable):
    """Redis is there and refused for now (memory, persistence, rights): asking again at once is of no use."""


def error_of(verb: str, reply: ReplyError) -> PenstockError:
    if str(reply).startswith("MOVED"):
        return Refused("This server is a node of a Redis Cluster: its URL begins with redis+cluster://")
    if str(reply).startswith(_UNABLE):
        return Refused(f"Redis refused to {verb}: {reply}")
    return InternalError(f"Redis could not {verb}: {reply}")


def is_out_of_memory(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("OOM")


class Store:
    """The connections of one transport: commands (joined writes), ears, one that may block, one for bulk reads."""

    def __init__(self, deployment: Deployment, pool: PoolKeys, metrics: StoreMetrics | None) -> None:
        self.pool = pool
        self.metrics: StoreMetrics = metrics if metrics is not None else NoMetrics()
        self._routes = routes_of(deployment, self.metrics)

    def conn(self, key: str) -> Connection:
        """The connection to the server that holds `key`."""
        return self._routes.to(key)

    @property
    def is_one_server(self) -> bool:
        """Every key is at the same one."""
        return self._routes.is_one_server

    def request_conn(self, job_id: str) -> Connection:
        """The same for all keys of a request."""
        return self._routes.to(keys.channel(job_id))

    @property
    def blocking(self) -> Connection:
        """For BLMOVE alone."""
        return self._routes.blocking(self.pool.queue)

    @property
    def ears(self) -> Subscription:
        return self._routes.ears

    def hears(self, topic: str) -> bool:
        return self._routes.ears.has(topic)

    async def every(self) -> list[Connection]:
        """A connection to each server that holds keys of ours: more than one on a cluster only."""
        return await self._routes.every()

    async def open(self) -> None:
        await self._routes.open()

    async def close(self) -> None:
        await self._routes.close()

    async def run(self, verb: str, key: str, *commands: Command) -> list[Reply]:
        """Run commands of one server in one pipeline; the first error reply is raised."""
        return await self._run(verb, self.conn(key), commands)

    async def run_bulk(self, verb: str, key: str, *commands: Command) -> list[Reply]:
        """The same for what may be large, on a connection of its own: what requests wait for is never behind it."""
        return await self._run(verb, self._routes.bulk(key), commands)

    async def _run(self, verb: str, conn: Connection, commands: Sequence[Command]) -> list[Reply]:
        replies = await self.exchange(verb, conn, commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                self.metrics.store_error("refused")
                raise error_of(verb, reply)
        return replies

    async def run_each(
        self, verb: str, commands: Iterable[tuple[str, Command]], *, may_miss: bool = False, is_bulk: bool = False
    ) -> list[Reply]:
        """Run commands of many slots: one pipeline for each server, side by side; replies in the order of the commands.

        `may_miss`: of several servers, those that do not answer in time cost their own replies only, which are
        `MISSED`: the work of a node that lives must not wait for one that is dead. `is_bulk`: as `run_bulk`.
        """
        pairs = list(commands)
        groups: dict[Connection, list[int]] = {}
        for index, (key, _) in enumerate(pairs):
            groups.setdefault(self._routes.bulk(key) if is_bulk else self.conn(key), []).append(index)
        replies: list[Reply] = [MISSED] * len(pairs)
        limit_s = MISS_AFTER_S if may_miss and len(groups) > 1 else None

        async def one(conn: Connection, indices: list[int]) -> None:
            async with asyncio.timeout(limit_s):
                got = await self._run(verb, conn, [pairs[index][1] for index in indices])
            for index, reply in zip(indices, got, strict=True):
                replies[index] = reply

        if len(groups) == 1:
            await one(*groups.popitem())
            return replies
        outcomes = await asyncio.gather(*(one(*group) for group in groups.items()), return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not None]
        for error in failed:
            if not (may_miss and isinstance(error, StoreUnavailable | TimeoutError) and len(failed) < len(outcomes)):
                raise StoreUnavailable("Redis did not answer in time.") if isinstance(error, TimeoutError) else error
        return replies

    async def ask(self, verb: str, key: str, command: Command) -> Reply:
        """Run one command."""
        return (await self.run(verb, key, command))[0]

    async def exchange(self, verb: str, conn: Connection, commands: Sequence[Command]) -> list[Reply]:
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
