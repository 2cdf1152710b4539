"""Ollama's routes over a real socket, as a client without a library asks them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.support.serving import serving


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving(models="mock=mock;vectors=mock:embeds=true") as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


async def _post(http: httpx2.AsyncClient, path: str, status: int = 200, **body: Any) -> httpx2.Response:
    answer = await http.post(f"/api/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer


HI = [{"role": "user", "content": "hi"}]
SHORT: dict[str, Any] = {"options": {"num_predict": 3}}


async def test_a_chat_is_a_stream_of_lines_unless_it_is_not(http: httpx2.AsyncClient) -> None:
    answer = await _post(http, "chat", model="mock", messages=HI, **SHORT)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *parts, last = map(json.loads, answer.text.splitlines())
    assert (last["done"], last["eval_count"], last["done_reason"]) == (True, 3, "length")
    assert last["total_duration"] > 0
    whole = (await _post(http, "chat", model="mock:latest", messages=HI, stream=False, **SHORT)).json()
    assert whole["message"]["content"] == "".join(part["message"]["content"] for part in parts)
    assert (whole["model"], whole["done"], whole["eval_count"]) == ("mock", True, 3)


async def test_a_generated_text(http: httpx2.AsyncClient) -> None:
    *parts, last = map(json.loads, (await _post(http, "generate", prompt="hi", **SHORT)).text.splitlines())
    whole = (await _post(http, "generate", prompt="hi", stream=False, **SHORT)).json()
    assert whole["response"] == "".join(part["response"] for part in parts)
    assert last["done"]


@pytest.mark.parametrize(("path", "empty"), [("chat", {"messages": []}), ("generate", {"prompt": ""})])
async def test_a_request_without_a_prompt_loads_the_model(
    http: httpx2.AsyncClient, path: str, empty: dict[str, Any]
) -> None:
    answer = (await _post(http, path, model="mock", keep_alive="5m", **empty)).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    await _post(http, path, 404, model="nothing", **empty)


async def test_vectors(http: httpx2.AsyncClient) -> None:
    answer = (await _post(http, "embed", model="vectors", input=["a", "b"])).json()
    assert (len(answer["embeddings"]), answer["model"]) == (2, "vectors")
    assert answer["prompt_eval_count"] > 0
    single = (await _post(http, "embeddings", model="vectors", prompt="a")).json()
    assert single == {"embedding": answer["embeddings"][0]}


async def test_errors_are_a_sentence_with_the_right_status(http: httpx2.AsyncClient) -> None:
    for path, body, status in (
        ("chat", {"model": "nothing", "messages": HI}, 404),
        ("chat", {"messages": HI, "suffix": "x"}, 400),
        ("generate", {"prompt": "x", "options": {"num_predict": 10**9}}, 400),
        ("show", {}, 400),
        ("show", {"model": "nothing"}, 404),
        ("pull", {"model": "mock"}, 404),
    ):
        answer = await _post(http, path, status, **body)
        assert list(answer.json()) == ["error"]
        assert isinstance(answer.json()["error"], str)
    refused = await _post(http, "generate", 400, prompt="x", options={"num_predict": 10**9})
    assert "'options.num_predict' must be at most" in refused.json()["error"]
    assert (await http.get("/api/chat")).status_code == 405


async def test_the_models(http: httpx2.AsyncClient) -> None:
    tags = (await http.get("/api/tags")).json()["models"]
    assert [one["name"] for one in tags] == [one["model"] for one in tags] == ["mock", "vectors"]
    assert all(len(one["digest"]) == 64 and one["details"]["family"] == "" for one in tags)
    running = (await http.get("/api/ps")).json()["models"]
    assert [one["name"] for one in running] == ["mock", "vectors"]
    assert running[0]["expires_at"].startswith("9999")
    shown = (await _post(http, "show", model="vectors", verbose=True)).json()
    assert "embedding" in shown["capabilities"]
    assert (await _post(http, "show", name="mock")).json()["capabilities"][0] == "completion"
    major, minor, _ = (await http.get("/api/version")).json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 6)
