"""Overload, depth limits, rate limits and keys, with real processes on a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import pytest
import redis.asyncio

from tests.support import reading
from tests.support.programs import altered, site
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)


async def test_overload_gives_429_and_never_504(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=20", "--max-batch-size", "4", "--max-batches", "1")
        fleet.gateway("--max-queue-depth", "20")
        url = fleet.gateways[0]
        async with reading.client() as http:

            async def one(i: int) -> tuple[int, str, str]:
                answer = await reading.whole(http, url, prompt=f"flood {i}", max_tokens=10)
                code = answer.json()["error"]["code"] if answer.status_code != 200 else "ok"
                return answer.status_code, code, answer.headers.get("retry-after", "")

            # The worker is full until the flood is over, however slowly it comes: nothing that ends makes room.
            body = {"prompt": "hold", "max_tokens": 8000, "stream": True}
            async with contextlib.AsyncExitStack() as holding:
                for _ in range(4):
                    held = await holding.enter_async_context(http.stream("POST", f"{url}/v1/generate", json=body))
                    await anext(reading.events(held))
                tasks = [asyncio.create_task(one(i)) for i in range(200)]
                await wait_until(lambda: sum(task.done() for task in tasks) >= 200 - 32, "the others are refused", 60.0)
            answers = await asyncio.gather(*tasks)
        kinds = Counter((status, code) for status, code, _ in answers)
        assert set(kinds) == {(200, "ok"), (429, "queue_full")}
        # what the worker runs, what waits, and what one batch in advance may hold
        assert 20 <= kinds[200, "ok"] <= 20 + 4 + 4 + 4
        assert all(int(after) >= 1 for status, _, after in answers if status == 429)


@pytest.mark.timeout(300)
async def test_the_depth_limit_is_exact_under_8_flooders(redis_url: str) -> None:
    """Eight gateway processes, a limit of 100, and a worker whose only slot is taken until the flood is over."""
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=50", "--max-batches", "1", "--max-batch-size", "1")
        for _ in range(8):
            fleet.gateway("--max-queue-depth", "100", is_ready=False)
        for url, program in zip(fleet.gateways, fleet.programs[1:], strict=True):
            program.wait_for(f"{url}/readyz")
        store = redis.asyncio.from_url(redis_url, socket_timeout=60, socket_connect_timeout=60)
        try:
            highest = 0
            async with reading.client(timeout_s=280, connections=2000) as http:
                body = {"prompt": "hold", "max_tokens": 8000, "stream": True}
                async with http.stream("POST", f"{fleet.gateways[0]}/v1/generate", json=body) as holding:
                    events = reading.events(holding)  # kept: with it the stream would be closed
                    await anext(events)  # it has the slot
                    tasks = [
                        asyncio.create_task(
                            reading.whole(http, fleet.gateways[i % 8], prompt=f"flood {i}", max_tokens=1, timeout_s=250)
                        )
                        for i in range(600)
                    ]
                    while sum(task.done() for task in tasks) < 600 - 100:
                        highest = max(highest, await store.llen("inference:queue"))
                        await asyncio.sleep(0.01)
                assert highest <= 100
                answers = await asyncio.gather(*tasks)
            assert Counter(answer.status_code for answer in answers) == {200: 100, 429: 500}
        finally:
            await store.aclose()


async def test_rate_limits_are_shared_by_gateways(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker()
        for _ in range(2):
            fleet.gateway("--rate-limit-rpm", "60", "--rate-limit-burst", "5")
        async with reading.client() as http:
            answers = [
                await reading.whole(http, fleet.gateways[i % 2], prompt="limited", max_tokens=1) for i in range(12)
            ]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:5]] == ["4", "3", "2", "1", "0"]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) >= 6
        for answer in refused:
            assert answer.json()["error"]["code"] == "rate_limited"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-ratelimit-limit-requests"] == "60"


async def test_keys(tmp_path: Path) -> None:
    from penstock.callers.keys import create_key, revoke_key

    path = tmp_path / "keys.toml"
    _, good = create_key(path, name="good")
    _, narrow = create_key(path, name="narrow", models=("other",))
    _, limited = create_key(path, name="limited", rpm=60, burst=1)
    with site() as fleet:
        fleet.serve("--api-keys-file", str(path))
        url = fleet.gateways[0]
        async with reading.client() as http:

            async def ask(headers: dict[str, str]) -> tuple[int, str]:
                answer = await http.post(f"{url}/v1/generate", json={"prompt": "hi", "max_tokens": 1}, headers=headers)
                return answer.status_code, answer.json().get("error", {}).get("code", "ok")

            assert await ask({}) == (401, "invalid_api_key")
            assert await ask({"authorization": f"Bearer {altered(good)}"}) == (401, "invalid_api_key")
            assert await ask({"authorization": f"Bearer {good}"}) == (200, "ok")
            assert await ask({"x-api-key": good}) == (200, "ok")
            assert await ask({"api-key": good}) == (200, "ok")
            assert await ask({"x-api-key": narrow}) == (403, "model_not_allowed")
            assert await ask({"x-api-key": limited}) == (200, "ok")
            assert await ask({"x-api-key": limited}) == (429, "rate_limited")
            assert await ask({"x-api-key": good}) == (200, "ok")
            revoke_key(path, good.partition(".")[0])

            async def is_revoked() -> bool:
                return await ask({"x-api-key": good}) == (401, "invalid_api_key")

            await wait_until_async(is_revoked, "the file is read again when it changes")
        secret = good.partition(".")[2]
        assert secret not in fleet.programs[0].output()


async def test_without_keys_any_key_is_accepted() -> None:
    with site() as fleet:
        fleet.serve()
        async with reading.client() as http:
            answer = await http.post(
                f"{fleet.gateways[0]}/v1/generate",
                json={"prompt": "hi", "max_tokens": 1},
                headers={"authorization": "Bearer anything"},
            )
        assert answer.status_code == 200


async def test_a_page_of_a_named_origin_may_call_and_no_other() -> None:
    page = {"origin": "https://app.example.org"}
    asks = page | {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-api-key"}
    with site() as built:
        built.serve("--cors-origins", "https://app.example.org,http://localhost:3000")
        url = f"{built.gateways[0]}/v1/generate"
        async with reading.client() as http:
            preflight = await http.options(url, headers=asks)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == page["origin"]
            assert "x-api-key" in preflight.headers["access-control-allow-headers"]
            assert (await http.options(url, headers=asks | {"origin": "https://evil.example"})).status_code == 400
            for body in ({"prompt": "hi", "max_tokens": 2, "stream": True}, {"prompt": "hi", "max_tokens": 2}, {}):
                answer = await http.post(url, json=body, headers=page)
                assert answer.status_code == (200 if body else 400)
                assert answer.headers["access-control-allow-origin"] == page["origin"]
                assert "x-request-id" in answer.headers["access-control-expose-headers"]
            other = await http.post(
                url, json={"prompt": "hi", "max_tokens": 1}, headers={"origin": "https://evil.example"}
            )
            assert "access-control-allow-origin" not in other.headers
