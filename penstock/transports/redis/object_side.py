"""The request as an object, on Redis: followed from another gateway, bound to a key, listed, found in the queue."""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache

from penstock.errors import StoreUnavailable
from penstock.job import Job
from penstock.transports.base import Transport
from penstock.transports.redis import keys, scripts
from penstock.transports.redis.scripts import Command, command
from penstock.transports.redis.store import Store
from penstock.transports.redis.subscription import OnMessage

log = logging.getLogger(__name__)


class ObjectSide(Transport):
    """The verbs of `RedisTransport` for requests that are looked at, taken up and asked for again."""

    _store: Store
    _hear: OnMessage | None = None

    async def follow(self, job_id: str) -> None:
        """Without an `on_reset` of its own: when the gateway's pattern stands again, this channel does."""
        if self._hear is None:  # a process that has just been started, and is asked before it is ready
            raise StoreUnavailable("This gateway does not listen yet.", retry_after_s=1.0)
        topic = keys.channel(job_id)
        try:
            await self._store.ears.subscribe(topic, self._hear)
        except BaseException:
            self._store.ears.unsubscribe(topic)
            raise

    async def unfollow(self, job_id: str) -> None:
        self._store.ears.unsubscribe(keys.channel(job_id))

    async def once(self, caller: str, key: str, job_id: str, body_hash: str, keep_s: float) -> tuple[str, str] | None:
        name = keys.once(caller, _digest(key))
        bind = command("SET", name, f"{job_id} {body_hash}", "NX", "GET", "PX", max(1, round(keep_s * 1000)))
        bound = await self._store.ask("once", name, bind)
        if bound is None:
            return None
        first_id, _, first_hash = bound.decode().partition(" ")
        return None if first_id == job_id else (first_id, first_hash)  # ours already: the reply had been lost

    async def unbind(self, caller: str, key: str, job_id: str) -> None:
        name = keys.once(caller, _digest(key))
        await self._store.ask("unbind", name, scripts.unbind(name, job_id))

    async def requests_of(self, caller: str, limit: int) -> list[str]:
        name = keys.caller(caller)
        ids = await self._store.ask("requests_of", name, command("LRANGE", name, 0, -1))
        newest = dict.fromkeys(job_id.decode() for job_id in ids)  # one that was submitted again is there twice
        return list(newest)[: max(0, limit)]

    async def waiting(self, limit: int = 10_000) -> list[str]:
        if limit < 1:
            return []
        queue = self._store.pool.queue
        ids = await self._store.ask("waiting", queue, command("LRANGE", queue, 0, limit - 1))
        return [job_id.decode() for job_id in ids]

    async def _remember(self, job: Job, retention_ms: int) -> None:
        """List the request under its caller: unasked on the connection that just submitted it, else a round trip.

        The request is in the queue by now: that it is not listed must not fail it.
        """
        name = keys.caller(job.caller)
        words = [command("LPUSH", name, job.id), *_bounds(name, round(job.timeout_s * 1000) + retention_ms)]
        conn = self._store.conn(name)
        if conn is self._store.request_conn(job.id):
            conn.post(b"".join([word.packed for word in words]), len(words))
        else:
            try:
                await self._store.run("remember", name, *words)
            except StoreUnavailable as error:
                log.warning("request %s is not in its caller's list: %s", job.id, error.message)


@lru_cache(maxsize=1024)
def _bounds(name: str, life_ms: int) -> tuple[Command, ...]:
    """What keeps a caller's list short, and alive as long as the request that lives longest."""
    return (
        command("LTRIM", name, 0, keys.MAX_LISTED - 1),
        command("PEXPIRE", name, life_ms, "NX"),
        command("PEXPIRE", name, life_ms, "GT"),
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
