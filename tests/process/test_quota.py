"""What one caller can do to the others by what it stores and reads, with real gateways on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.callers.keys import create_key
from penstock.transports.redis import keys
from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import redis_client
from tests.support.waiting import wait_until_async

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
    client = redis_client(redis_url)
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


async def test_a_quota_is_exact_over_two_gateways(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    people = _callers(path, "alice", "bob")
    with site(redis_url) as fleet:
        fleet.worker()
        for _ in range(2):
            fleet.gateway("--api-keys-file", str(path), "--max-stored-per-caller", "20", "--retention-s", "1")
        body = {"prompt": "x" * 1000, "max_tokens": 1, "background": True}
        asked = [people["bob"].post(f"{fleet.gateways[i % 2]}/v1/generate", json=body) for i in range(60)]
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status_code for answer in answers) == {202: 20, 429: 40}
        refused = next(answer for answer in answers if answer.status_code == 429)
        error = refused.json()["error"]
        assert error["code"] == "storage_quota"
        assert "PENSTOCK_MAX_STORED_PER_CALLER" in error["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert (
            await reading.whole(people["alice"], fleet.gateways[0], prompt="Hello", max_tokens=2)
        ).status_code == 200
        taken = [answer.json()["request_id"] for answer in answers if answer.status_code == 202]
        again = await _store(people["bob"], fleet, 1, 1000)
        assert again[0].status_code == 429
        for request_id in taken[:5]:  # they have ended: to cancel them changes nothing
            await people["bob"].delete(f"{fleet.gateways[1]}/v1/requests/{request_id}")
        assert (await _store(people["bob"], fleet, 1, 1000))[0].status_code == 429
    for http in people.values():
        await http.aclose()


async def test_cancelled_requests_are_not_kept_long(redis_url: str, tmp_path: Path) -> None:
    """POST and DELETE in turn, of a megabyte each: Redis holds them for `retention_s`, and the quota bounds them."""
    path = tmp_path / "keys.toml"
    people = _callers(path, "bob")
    client = redis_client(redis_url)
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=1000")
        fleet.gateway("--api-keys-file", str(path), "--max-stored-bytes-per-caller", str(4 * MIB), "--retention-s", "2")
        before = client.info("memory")["used_memory"]
        kinds: Counter[int] = Counter()
        for _ in range(30):
            (answer,) = await _store(people["bob"], fleet, 1, MIB - 200, max_tokens=50)
            kinds[answer.status_code] += 1
            if answer.status_code == 202:
                await people["bob"].delete(f"{fleet.gateways[0]}/v1/requests/{answer.json()['request_id']}")
        assert kinds[202] >= 3
        assert kinds[429] > 0
        assert client.info("memory")["used_memory"] - before < 16 * MIB

        async def has_room() -> bool:
            return (await _store(people["bob"], fleet, 1, MIB - 200))[0].status_code == 202

        await wait_until_async(has_room, "the cancelled ones to expire")  # a day, by their own retention
    await people["bob"].aclose()
    client.close()


async def test_sixteen_answers_count_as_sixteen(redis_url: str) -> None:
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock", "--model", "vectors=mock:embeds=yes")
        fleet.gateway("--rate-limit-rpm", "6", "--rate-limit-burst", "40")
        async with reading.client() as http:
            url, left = fleet.gateways[0], "x-ratelimit-remaining-requests"
            chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            one = await http.post(f"{url}/v1/chat/completions", json=chat)
            assert (one.status_code, one.headers[left]) == (200, "39")
            many = await http.post(f"{url}/v1/chat/completions", json={**chat, "n": 16})
            assert (many.status_code, many.headers[left]) == (200, "23")
            prompts = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1}
            assert (await http.post(f"{url}/v1/completions", json=prompts)).headers[left] == "19"
            texts = {"model": "vectors", "input": ["x"] * 33}
            assert (await http.post(f"{url}/v1/embeddings", json=texts)).headers[left] == "16"
            assert (await http.post(f"{url}/v1/chat/completions", json=chat)).headers[left] == "15"
            late = await http.post(f"{url}/v1/chat/completions", json={**chat, "n": 16})
            assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limited")
            fleet.gateway("--rate-limit-rpm", "60")
            never = await http.post(f"{fleet.gateways[1]}/v1/chat/completions", json={**chat, "n": 16})
            assert never.status_code == 400
            assert "PENSTOCK_RATE_LIMIT_BURST" in never.json()["error"]["message"]


async def test_one_tenant_has_its_share_of_the_queue(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    people = _callers(path, "alice", "bob")
    with site(redis_url) as fleet:
        fleet.worker("--model", "mock=mock:step_ms=1000", "--max-batch-size", "1", "--max-batches", "1")
        for _ in range(2):
            fleet.gateway("--api-keys-file", str(path), "--max-queue-depth", "40")
        body = {"prompt": "x", "max_tokens": 1000, "background": True}
        asked = [people["bob"].post(f"{fleet.gateways[i % 2]}/v1/generate", json=body) for i in range(60)]
        kinds = Counter(answer.status_code for answer in await asyncio.gather(*asked))
        assert set(kinds) == {202, 429}
        assert 20 <= kinds[202] <= 24  # half of the depth, and what the worker took meanwhile
        answer = await people["alice"].post(f"{fleet.gateways[0]}/v1/generate", json=body)
        assert answer.status_code == 202
    for http in people.values():
        await http.aclose()


async def test_a_serve_in_memory_keeps_so_much() -> None:
    with site() as fleet:
        fleet.serve("--max-memory-bytes", str(8 * MIB))
        async with reading.client() as http:
            answers = await _store(http, fleet, 12, MIB - 200)
            assert Counter(answer.status_code for answer in answers) == {202: 7, 503: 5}
            assert "PENSTOCK_MAX_MEMORY_BYTES" in answers[-1].json()["error"]["message"]


async def _ended(http: httpx2.AsyncClient, url: str, response_id: str) -> dict[str, Any]:
    """The response once it has ended."""
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        found.update((await http.get(f"{url}/v1/responses/{response_id}")).json())
        return found["status"] not in ("queued", "in_progress")

    await wait_until_async(has_ended, "the response to end")
    assert found["status"] in ("completed", "incomplete"), found
    return found


async def test_a_long_conversation_is_stored_once(redis_url: str) -> None:
    """Follow-ups of 150 bytes to a megabyte of conversation: side by side, and in a chain. The model sees all of it."""
    client = redis_client(redis_url)
    with site(redis_url) as fleet:
        fleet.worker()
        for _ in range(2):
            fleet.gateway("--retention-s", "2")
        async with reading.client() as http:
            fields = {"model": "mock", "max_output_tokens": 4, "background": True}

            async def ask(text: str, after: str | None, number: int = 0) -> dict[str, Any]:
                url = fleet.gateways[number % 2]
                asked = {**fields, "input": text, "previous_response_id": after}
                answer = await http.post(f"{url}/v1/responses", json={k: v for k, v in asked.items() if v is not None})
                assert answer.status_code == 200, answer.text
                return await _ended(http, url, answer.json()["id"])

            first = await ask("x" * (MIB - 10_000), None)
            before = client.info("memory")["used_memory"]
            for number in range(20):
                await ask(f"aside {number}", first["id"], number)
            last, said = first, [{"role": "user", "content": "x" * (MIB - 10_000)}, *first["output"]]
            for number in range(20):
                last = await ask(f"and {number}", last["id"], number)
                said += [{"role": "user", "content": f"and {number}"}, *last["output"]]

            async def is_small() -> bool:  # the last one is shortened a moment after its end
                return int(client.info("memory")["used_memory"]) - int(before) < 2 * MIB

            await wait_until_async(is_small, "40 follow-ups to take less than 2 MiB (they took 40)")
            by_id = await ask("finally", last["id"])
            by_hand = {
                "model": "mock",
                "max_output_tokens": 4,
                "input": [*said, {"role": "user", "content": "finally"}],
            }
            answer = await http.post(f"{fleet.gateways[0]}/v1/responses", json=by_hand)
            assert answer.json()["output"][0]["content"] == by_id["output"][0]["content"]
    client.close()


async def test_the_messages_of_a_conversation_are_kept_as_long_as_they_are_needed(redis_url: str) -> None:
    client = redis_client(redis_url)
    with site(redis_url) as fleet:
        fleet.worker()
        fleet.gateway("--retention-s", "1")
        async with reading.client() as http:
            url = fleet.gateways[0]
            body = {"model": "mock", "max_output_tokens": 2, "input": "x" * 100_000}
            first = (await http.post(f"{url}/v1/responses", json=body)).json()
            on = {**body, "input": "and?", "previous_response_id": first["id"], "background": True}
            second = await _ended(http, url, (await http.post(f"{url}/v1/responses", json=on)).json()["id"])
            hold = keys.job(first["id"].removeprefix("resp_"))
            assert int(client.pttl(hold)) > 3_600_000
            _, stored, sizes = keys.caller("")
            booked = client.zscore(stored, first["id"].removeprefix("resp_"))
            assert booked is not None
            assert float(booked) / 1000 - client.time()[0] > 3600
            assert client.hget(sizes, first["id"].removeprefix("resp_")) is not None
            third = {**body, "input": "so?", "previous_response_id": second["id"]}
            assert (await http.post(f"{url}/v1/responses", json=third)).status_code == 200
    client.close()
