"""What one caller can do to the others by what it stores and reads, with real gateways on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import redis

from penstock.keys import create_key
from tests.process import reading
from tests.process.programs import Site, site

pytestmark = pytest.mark.timeout(180)

MIB = 2**20


def _as(key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60.0)


def _callers(path: Path, *names: str) -> dict[str, httpx2.AsyncClient]:
    return {name: _as(create_key(path, name)[1]) for name in names}


async def _store(http: httpx2.AsyncClient, fleet: Site, num: int, size: int, **body: object) -> list[httpx2.Response]:
    """Ask for `num` requests in the background, of `size` bytes each."""
    url, fields = f"{fleet.gateways[0]}/v1/generate", {"prompt": "x" * size, "max_tokens": 1, "background": True}
    return [await http.post(url, json={**fields, **body}) for _ in range(num)]


async def test_one_tenants_lists_leave_the_gateway_to_the_others(redis_url: str, tmp_path: Path) -> None:
    """100 requests of a megabyte, listed 48 times, 16 at once: what is read is small, and everybody is answered."""
    path = tmp_path / "keys.toml"
    people = _callers(path, "alice", "bob")
    client = redis.Redis.from_url(redis_url)
    with site(redis_url) as fleet:
        fleet.worker()
        fleet.gateway("--api-keys-file", str(path))
        stored = await _store(people["bob"], fleet, 100, MIB - 200)
        assert Counter(answer.status_code for answer in stored) == {202: 100}
        before = client.info("stats")["total_net_output_bytes"]
        turns = asyncio.Semaphore(16)

        async def list_all() -> tuple[int, int]:
            async with turns:
                answer = await people["bob"].get(f"{fleet.gateways[0]}/v1/requests?limit=100")
            return answer.status_code, len(answer.json()["data"])

        lists = [asyncio.create_task(list_all()) for _ in range(48)]
        asked = [
            (await reading.whole(people["alice"], fleet.gateways[0], prompt="Hello", max_tokens=2)).status_code
            for _ in range(20)
        ]
        assert Counter(await asyncio.gather(*lists)) == {(200, 100): 48}
        assert Counter(asked) == {200: 20}
        # 48 lists of 100: about 350 bytes for each one listed; before, a megabyte for each
        assert client.info("stats")["total_net_output_bytes"] - before < 10 * MIB
    for http in people.values():
        await http.aclose()
    client.close()
