"""A worker is killed in the middle of answers that no other can continue: what no client has read is run again."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import httpx2
import pytest

from tests.support import reading
from tests.support.programs import Site, site
from tests.support.servers import redis_client
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)

NAMES = [f"field_{number:02}" for number in range(12)]
TOOL: Any = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {name: {"type": "string"} for name in NAMES}},
}
CHAT_TOOLS = [{"type": "function", "function": TOOL}]
MODEL = ("--model", "mock=mock:tools=true,resumes=false,step_ms=60")


def _arguments(text: str) -> Any:
    """All of them, once each: two generations spliced together would not be JSON."""
    arguments = json.loads(text)
    assert list(arguments) == NAMES
    return arguments


async def _chat(http: httpx2.AsyncClient, url: str, *, stream: bool) -> httpx2.Response:
    messages = [{"role": "user", "content": f"The weather, streamed: {stream}."}]
    body = {"model": "mock", "messages": messages, "tools": CHAT_TOOLS, "stream": stream}
    return await http.post(f"{url}/v1/chat/completions", json=body)


async def _respond(http: httpx2.AsyncClient, url: str) -> str:
    body = {"model": "mock", "input": "The weather.", "tools": [{"type": "function", **TOOL}], "background": True}
    answer = await http.post(f"{url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def _read(http: httpx2.AsyncClient, url: str, response_id: str, seen: list[str]) -> None:
    """Its events, from the first one."""
    async with http.stream("GET", f"{url}/v1/responses/{response_id}?stream=true") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))


async def _ended(http: httpx2.AsyncClient, url: str, response_id: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    async def is_over() -> bool:
        seen.update((await http.get(f"{url}/v1/responses/{response_id}")).json())
        assert seen["status"] not in ("queued", "in_progress") or seen["output"] == []
        return seen["status"] not in ("queued", "in_progress")

    await wait_until_async(is_over, f"{response_id} ends")
    return seen


async def _begun(fleet: Site, redis_url: str, num: int) -> None:
    """So many answers are in their middle: each has two tokens at least, and none has its end."""
    with redis_client(redis_url) as client:

        async def are_begun() -> bool:
            logs = [client.xrevrange(key, count=1) for key in client.scan_iter("*:log")]
            return sum(int(log[0][0].partition(b"-")[2]) >= 2 for log in logs if log) == num

        await wait_until_async(are_begun, f"{num} answers are in their middle")


async def test_a_killed_worker_costs_no_answer_that_was_not_read(redis_url: str) -> None:
    with site(redis_url) as fleet:
        doomed = fleet.worker(*MODEL)
        for _ in range(2):
            fleet.gateway()
        here, there = fleet.gateways
        async with reading.client() as http:
            whole, streamed = (asyncio.create_task(_chat(http, here, stream=stream)) for stream in (False, True))
            unread, read = await _respond(http, here), await _respond(http, here)
            events: list[str] = []
            reader = asyncio.create_task(_read(http, there, read, events))
            await wait_until(lambda: len(events) > 4, "a client reads one of them")
            await _begun(fleet, redis_url, 4)
            doomed.signal(signal.SIGKILL)
            fleet.worker(*MODEL)

            answer = await whole
            assert answer.status_code == 200, answer.text
            (choice,) = answer.json()["choices"]
            assert choice["finish_reason"] == "tool_calls"
            arguments = _arguments(choice["message"]["tool_calls"][0]["function"]["arguments"])
            undisturbed = (await _chat(http, here, stream=False)).json()
            again = undisturbed["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
            assert arguments == json.loads(again)
            assert answer.json()["usage"] == undisturbed["usage"], "only the answer that was given counts"
            shown = (await http.get(f"{there}/v1/requests/{answer.headers['x-request-id']}")).json()
            assert (shown["state"], shown["attempts"]) == ("completed", 2)

            assert '"code":"worker_lost"' in (await streamed).text.replace(" ", "")
            done = await _ended(http, there, unread)
            assert done["status"] == "completed", done
            _arguments(done["output"][0]["arguments"])
            lost = await _ended(http, here, read)
            assert (lost["status"], lost["error"]["penstock"]) == ("failed", "worker_lost"), lost
            await reader
            assert events[-1] == "response.failed"
            page = (await http.get(f"{fleet.workers[-1]}/metrics")).text
            assert reading.metric(page, "penstock_reruns_total") == 2
