"""The common part of the three stores on Redis: one client, its opening and closing, the checks, and the hints."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from penstock.job import CancelReason
from penstock.transports.base import Store
from penstock.transports.redis import keys
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.examiner import Examiner
from penstock.transports.redis.lifetimes import Lifetimes
from penstock.wire import decode_json


class _Hint(Struct, frozen=True):
    id: str
    reason: CancelReason


class RedisBase(Store):
    """A store over one client. Each of the three works by itself; `RedisTransport` is all of them over the same one."""

    def __init__(self, client: RedisClient, lifetimes: Lifetimes) -> None:
        self._redis = client
        self._lifetimes = lifetimes
        self._examiner = Examiner(client)

    async def open(self) -> None:
        await self._redis.open()

    async def close(self) -> None:
        await self._redis.close()

    async def check(self) -> None:
        await self._examiner.check()

    async def watch(self, process_id: str, on_cancel: Callable[[str, CancelReason], None]) -> None:
        def hear(_channel: bytes, message: bytes) -> None:
            hint: _Hint = decode_json(message, _Hint)
            on_cancel(hint.id, hint.reason)

        await self._redis.subscriber.subscribe(keys.control(process_id), hear)
