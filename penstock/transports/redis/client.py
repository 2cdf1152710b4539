"""The base of every verb: the connections of one process, and one way to run commands on them.

Every command goes to `conn(key)`: the one server, or the node that holds the key's slot. An error reply becomes a
`StoreUnavailable` of that command, after a look whether a key of the pool is of the wrong type. Knows nothing of what
the commands mean.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from hiredis import ReplyError

from penstock.errors import StoreUnavailable
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.driver.command import Command
from penstock.transports.redis.driver.connection import Connection
from penstock.transports.redis.driver.endpoint import Deployment
from penstock.transports.redis.driver.link import NoMetrics, Reply, StoreMetrics
from penstock.transports.redis.driver.routes import routes_of
from penstock.transports.redis.driver.subscriber import Subscriber
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.refusals import Refusals, kind_of, shown

log = logging.getLogger(__name__)

MISS_AFTER_S = 1.0
REPAIR_EVERY_S = 0.2
MISSED: Final = object()


class RedisClient:
    """The connections of one transport, and the keys of its pool.

    One for commands (joined writes), the subscriber's, one for a command that blocks, one for bulk reads.
    """

    def __init__(self, deployment: Deployment, pool: PoolKeys, metrics: StoreMetrics | None) -> None:
        self.deployment = deployment
        self.pool = pool
        self.metrics: StoreMetrics = metrics if metrics is not None else NoMetrics()
        self._routes = routes_of(deployment, self.metrics, scripts.PRELOAD)
        self.refusal = Refusals(self.metrics)
        self._repaired_at = float("-inf")

    def clone(self) -> RedisClient:
        """The same servers and keys, with connections of its own, made in whichever event loop uses them."""
        return RedisClient(self.deployment, self.pool, self.metrics)

    def conn(self, key: str) -> Connection:
        """The connection to the server that holds `key`."""
        return self._routes.to(key)

    @property
    def is_one_server(self) -> bool:
        """Whether every key is at the same server."""
        return self._routes.is_one_server

    def request_conn(self, job_id: str) -> Connection:
        """The same for all keys of a request."""
        return self._routes.to(keys.channel(job_id))

    @property
    def blocking(self) -> Connection:
        """For BLMOVE alone."""
        return self._routes.blocking(self.pool.queue)

    @property
    def subscriber(self) -> Subscriber:
        return self._routes.subscriber

    def hears(self, topic: str) -> bool:
        return self._routes.subscriber.has(topic)

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
        """The same for replies that may be large, on a connection of its own: other commands never wait behind them."""
        return await self._run(verb, self._routes.bulk(key), commands)

    async def _run(
        self, verb: str, conn: Connection, commands: Sequence[Command], *, may_fail: bool = False
    ) -> list[Reply]:
        replies = await self.exchange(verb, conn, commands)
        for index, reply in enumerate(replies):
            if not isinstance(reply, ReplyError):
                continue
            refused = self.refusal(verb, reply)
            if await self.repair(conn, reply, commands[index].on):
                (replies[index],) = await self.exchange(verb, conn, commands[index : index + 1])
            if isinstance(replies[index], ReplyError) and not may_fail:
                raise refused
        return replies

    async def repair(self, conn: Connection, reply: ReplyError, on: Sequence[str | bytes]) -> bool:
        """After an error of a command on these keys: remove what is of the wrong type. True if there was such a key.

        Only keys that hold no request, and that are written again by themselves. Not more often than every 0.2 s.
        """
        wanted = {key: kind for key in on if (kind := keys.kind_of(key)) is not None}
        now = time.monotonic()
        is_theirs = kind_of(reply) in ("wrong_type", "unknown")
        if not wanted or not is_theirs or now - self._repaired_at < REPAIR_EVERY_S:
            return False
        (removed,) = await self.exchange("repair", conn, [scripts.repair(list(wanted), list(wanted.values()))])
        if not isinstance(removed, list):
            return False
        self._repaired_at = now
        for name in removed:
            self.metrics.store_error("repaired")
            log.error("removed %s from Redis: it was not what the protocol has there", shown(name))
        return bool(removed)

    async def run_each(
        self, verb: str, commands: Iterable[tuple[str, Command]], *, may_miss: bool = False, is_bulk: bool = False
    ) -> list[Reply]:
        """Run commands of many slots: one pipeline for each server, side by side; replies in the order of the commands.

        An error reply is returned in its place (counted, and logged): an error of one request does not fail the
        others. `may_miss`: of several servers, those that do not answer in time cost their own replies only, which
        are `MISSED`: the work of a node that lives must not wait for one that is dead. `is_bulk`: as `run_bulk`.
        """
        pairs = list(commands)
        groups: dict[Connection, list[int]] = {}
        for index, (key, _) in enumerate(pairs):
            groups.setdefault(self._routes.bulk(key) if is_bulk else self.conn(key), []).append(index)
        replies: list[Reply] = [MISSED] * len(pairs)
        limit_s = MISS_AFTER_S if may_miss and len(groups) > 1 else None

        async def one(conn: Connection, indices: list[int]) -> None:
            async with asyncio.timeout(limit_s):
                got = await self._run(verb, conn, [pairs[index][1] for index in indices], may_fail=True)
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
