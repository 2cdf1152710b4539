"""Which server is the master: every sentinel is asked until one answers, also when several connections ask at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver import sentinel
from penstock.transports.redis.driver.endpoint import Endpoint, parse
from penstock.transports.redis.driver.link import NoMetrics
from penstock.transports.redis.driver.sentinel import Sentinels


@pytest.fixture
async def sentinels() -> Sentinels:
    made = Sentinels(parse("redis+sentinel://dead:1,alive:2/front"), NoMetrics(), lambda endpoint: None)
    made._watching = asyncio.create_task(asyncio.sleep(0))  # instead of a subscription, which would need a server
    return made


async def test_of_two_connections_at_once_each_asks_every_sentinel(
    sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(asked: Endpoint, *args: Any) -> list[bytes]:
        await asyncio.sleep(0)  # the other connection asks meanwhile
        if asked.host == "dead":
            raise StoreUnavailable("refused")
        return [b"master", b"7"]

    monkeypatch.setattr(sentinel, "ask_once", answer)
    for num in range(1, 5):
        found = await asyncio.gather(*(sentinels.locate() for _ in range(num)))
        assert {(endpoint.host, endpoint.port) for endpoint in found} == {("master", 7)}
    await sentinels.close()


async def test_what_each_sentinel_answered_is_in_the_error(
    sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(asked: Endpoint, *args: Any) -> None:
        if asked.host == "dead":
            raise StoreUnavailable("refused")

    monkeypatch.setattr(sentinel, "ask_once", answer)
    with pytest.raises(StoreUnavailable, match="refused") as raised:
        await sentinels.locate()
    assert "alive:2 does not know it" in raised.value.message
    await sentinels.close()
