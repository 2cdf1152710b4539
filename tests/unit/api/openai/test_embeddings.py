"""Many texts to embed in one request: as many as OpenAI takes, in their order, in both forms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from penstock.api.fields import MAX_INPUTS
from penstock.rich_token import decode_vector
from tests.support.serving import serving


async def test_two_thousand_texts_are_embedded_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    in_threads: list[int] = []
    to_thread = asyncio.to_thread

    async def counted(work: Callable[..., Any], *args: Any) -> Any:
        in_threads.append(1)
        return await to_thread(work, *args)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    texts = [f"text {number}" for number in range(MAX_INPUTS)]
    async with serving() as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as http:
        numbers = (await http.post("/v1/embeddings", json={"input": texts})).json()
        assert in_threads == [1], "so many numbers are not written on the event loop"
        packed = (await http.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"})).json()
        few = (await http.post("/v1/embeddings", json={"input": texts[-3:]})).json()
        refused = await http.post("/v1/embeddings", json={"input": [*texts, "one more"]})
    assert in_threads == [1]
    assert [row["index"] for row in numbers["data"]] == list(range(MAX_INPUTS))
    assert [row["embedding"] for row in numbers["data"]] == [decode_vector(row["embedding"]) for row in packed["data"]]
    assert [row["embedding"] for row in few["data"]] == [row["embedding"] for row in numbers["data"][-3:]]
    assert numbers["usage"]["prompt_tokens"] == 2 * MAX_INPUTS
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
