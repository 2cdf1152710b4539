"""How process tests read answers: every token checked as it arrives."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from penstock.sse import Decoder, ServerEvent


@dataclass
class Answer:
    """A streamed answer, checked: indices 0…n-1, each once, then one end."""

    status: int
    tokens: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    end: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""

    @property
    def text(self) -> str:
        return "".join(self.tokens)


async def stream(client: httpx2.AsyncClient, url: str, stop_after: int | None = None, **body: Any) -> Answer:
    """POST with `stream: true`, and read to the end, or leave after `stop_after` tokens."""
    async with client.stream("POST", f"{url}/v1/generate", json={"stream": True, **body}) as response:
        answer = Answer(response.status_code, request_id=response.headers["x-request-id"])
        if response.status_code != 200:
            answer.data = json.loads(await response.aread())
            return answer
        decoder = Decoder()
        async for chunk in response.aiter_bytes():
            for event in decoder.feed(chunk):
                assert not answer.end, f"{event.event} after {answer.end}"
                data = json.loads(event.data)
                assert data["request_id"] == answer.request_id
                if event.event == "token":
                    assert data["index"] == len(answer.tokens), "a token is lost, repeated or out of order"
                    answer.tokens.append(data["text"])
                    answer.ids.append(event.id)
                else:
                    answer.end, answer.data = event.event, data
            if stop_after is not None and len(answer.tokens) >= stop_after:
                return answer
        assert answer.end, "the stream ended without done or error"
    return answer


async def whole(client: httpx2.AsyncClient, url: str, **body: Any) -> httpx2.Response:
    return await client.post(f"{url}/v1/generate", json=body)


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of `name` whose labels include `labels`."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith((name + "{", name + " ")):
            continue
        if all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def client(timeout_s: float = 60.0, connections: int = 1000) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(timeout=timeout_s, limits=limits)


async def events(response: httpx2.Response) -> AsyncIterator[ServerEvent]:
    """The events of an open streaming response."""
    decoder = Decoder()
    async for chunk in response.aiter_bytes():
        for event in decoder.feed(chunk):
            yield event


def texts(data: list[str]) -> list[str]:
    """The texts of `token` events."""
    return [str(json.loads(one)["text"]) for one in data]
