"""Every answer of a gateway, as it comes over the wire, is as the OpenAPI document describes it; and all that the
document describes is answered: no field, no kind of event and no value of a closed list is there for nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.requests import Request

from penstock.api.admin import _worker_row
from penstock.api.app import create_app
from penstock.api.native import NativeResponse
from penstock.api.responses.events import ResponseEvents
from penstock.callers.keys import create_key
from penstock.errors import Draining, InvalidRequest
from penstock.fleet import Engines, WorkerInfo
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import RelayStream
from penstock.http.door import Door
from penstock.http.ops import Ops
from penstock.job import Job, Message
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.base import Holding
from penstock.transports.memory import MemoryTransport
from tests.support.answers import JOB_ID
from tests.support.document import Document
from tests.support.memory import forget
from tests.support.scripted import SCRIPTS
from tests.support.serving import serving
from tests.support.waiting import wait_until, wait_until_async
from tests.unit.api.test_admin import Site

UNSEEN = {
    "RunningRow.state=queued",  # between two reads of the store only
    "RunningRow.state=done",
    "DoctorReport.level=warning",  # of a store in trouble
    "TokenizeAnswer.max_model_len|integer",  # of an engine of another project
}
ENDLESS = ("hang", "silence")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
FLAT_TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
JOB = Job(id=JOB_ID, model="m", messages=(Message("user", "hi"),))


class Asking:
    """Asks a gateway, and holds each answer to its document."""

    def __init__(self, http: httpx2.AsyncClient, document: Document) -> None:
        self.http = http
        self.document = document

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        answer = await self.http.request(method, path, json=body, **options)
        kind = answer.headers["content-type"]
        self.document.check(method, answer.request.url.path, answer.status_code, kind, answer.content)
        return answer

    async def get(self, path: str, **options: Any) -> Any:
        answer = await self("GET", path, **options)
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    async def both(self, path: str, body: dict[str, Any]) -> None:
        """Whole, and as a stream."""
        await self("POST", path, body)
        await self("POST", path, body | {"stream": True})


@asynccontextmanager
async def _asking(document: Document | None = None) -> AsyncIterator[Asking]:
    async with (
        serving(
            models="mock=tests.support.scripted:Scripted;tasks=mock", default_timeout_s=60, reasoning_field="both"
        ) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        yield Asking(http, document or Document((await http.get("/openapi.json")).json()))


async def test_every_answer_is_described_and_all_that_is_described_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _asking() as ask:
        document = ask.document
        for name in SCRIPTS.keys() - set(ENDLESS):
            await _answers_of_every_api(ask, f"[{name}]")
        await _fields_of_responses(ask)
        await _embeddings_and_models(ask)
        await _ollama(ask)
        await _tasks(ask)
        await _stored_input(ask)
        await _requests(ask)
        for path in ("livez", "readyz", "healthz", "health", "ping", "version", "metrics"):
            await ask("GET", f"/{path}")
        await ask("GET", "/v1/admin/doctor")
    await _without_a_worker(document, monkeypatch)
    await _rare_answers(document)
    assert set(document.unseen()) == UNSEEN
    described = {(method, path, status) for method, path, status, _ in document.responses() if status < "300"}
    assert described - document.asked == set()


async def _answers_of_every_api(ask: Asking, prompt: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    await ask.both("/v1/generate", {"prompt": prompt})
    await ask.both("/v1/chat/completions", {"messages": messages, "n": 2})
    await ask.both("/v1/completions", {"prompt": [prompt, prompt]})
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    await ask("POST", "/v1/chat/completions", {"messages": messages, **usage})
    await ask("POST", "/v1/completions", {"prompt": prompt, **usage})
    await ask.both("/v1/responses", {"input": prompt})
    await ask.both("/v1/messages", {"messages": messages, "max_tokens": 64})
    for is_stream in (False, True):
        await ask("POST", "/api/chat", {"model": "mock", "messages": messages, "stream": is_stream})
        await ask("POST", "/api/generate", {"model": "mock", "prompt": prompt, "stream": is_stream})


async def _fields_of_responses(ask: Asking) -> None:
    """Those of the answer that mirror the request."""
    made = await ask("POST", "/v1/responses", {"input": "hi", "instructions": "Be kind.", "user": "me"})
    more = {
        "max_output_tokens": 9,
        "temperature": 0.5,
        "metadata": {"a": "b"},
        "top_p": 0.5,
        "previous_response_id": made.json()["id"],
    }
    await ask("POST", "/v1/responses", {"input": "hi", **more})
    forms = [
        {"type": "json_object"},
        {"type": "json_schema", "name": "x", "schema": {}, "description": "d", "strict": True},
    ]
    for form in forms:
        await ask("POST", "/v1/responses", {"input": "hi", "text": {"format": form}})
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        await ask("POST", "/v1/responses", {"input": "hi", "reasoning": {"effort": effort}})
    tools = [FLAT_TOOL, {"type": "function", "name": "f", "description": "It is f."}]
    for choice in ("none", "auto", "required", {"type": "function", "name": "weather"}):
        await ask("POST", "/v1/responses", {"input": "[call]", "tools": tools, "tool_choice": choice})
    await ask.both("/v1/messages", {"messages": [_user("hi")], "max_tokens": 9, "stop_sequences": ["x"]})


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def _embeddings_and_models(ask: Asking) -> None:
    made = await ask("POST", "/v1/embeddings", {"input": ["a", "b"]})
    await ask("POST", "/v1/embeddings", {"input": "a", "encoding_format": "base64"})
    await ask.get(f"/v1/requests/{made.headers['x-request-id']}/events")
    await ask.get("/v1/models")
    await ask.get("/v1/models/mock")
    await ask("GET", "/v1/models/nothing")
    await ask("POST", "/v1/messages", {"messages": [_user("hi")], "max_tokens": 9, "model": "nothing"})


async def _ollama(ask: Asking) -> None:
    """What its API has besides text."""
    for path in ("/api/chat", "/api/generate"):
        await ask("POST", path, {"model": "mock"})  # to load it
    await ask("POST", "/api/embed", {"model": "mock", "input": ["a", "b"]})
    await ask("POST", "/api/embeddings", {"model": "mock", "prompt": "a"})
    await ask("POST", "/api/show", {"model": "mock"})
    await ask("POST", "/api/show", {"model": "nothing"})
    for path in ("/api/tags", "/api/ps", "/api/version"):
        await ask("GET", path)


async def _tasks(ask: Asking) -> None:
    """Of a model that has them."""
    own = {"model": "tasks"}
    await ask("POST", "/v1/messages/count_tokens", {"messages": [_user("hi")], **own})
    await ask("POST", "/tokenize", {"prompt": "Hello there", "return_token_strs": True, **own})
    made = (await ask("POST", "/tokenize", {"prompt": "Hello there", **own})).json()
    await ask("POST", "/detokenize", {"tokens": made["tokens"], **own})
    await ask("POST", "/tokenizer_info", own)
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        await ask("POST", path, {"query": "a", "documents": ["a", "b"], **own})
    await ask("POST", "/v1/rerank", {"query": "a", "documents": ["a"], "return_documents": False, **own})
    for path in ("/v1/score", "/score"):
        await ask("POST", path, {"text_1": "a", "text_2": ["a", "b"], **own})
    await ask("GET", "/tokenizer_info?model=tasks")


async def _stored_input(ask: Asking) -> None:
    """The items of a response's input, of every kind and role; and its deletion."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    images = [image, image | {"detail": "low"}, image | {"detail": "high"}, {"type": "input_text", "text": "See?"}]
    items = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": images},
        {"role": "assistant", "content": "c"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "d"},
        {"role": "user", "content": "e"},
    ]
    made = (await ask("POST", "/v1/responses", {"input": items})).json()
    path = f"/v1/responses/{made['id']}"
    listed = await ask.get(f"{path}/input_items")
    assert len(listed["data"]) == len(items)
    await ask.get(f"{path}/input_items?after={listed['last_id']}")
    await ask("DELETE", path)
    await ask("DELETE", path)


async def _requests(ask: Asking) -> None:
    """As they run, and after each kind of end."""
    for prompt in ("[stop]", "[length]", "[filter]", "[tools]", "[logprobs]", "[fail later]", "[invalid later]"):
        body = {"prompt": prompt, "background": True, "metadata": {"a": "b"}, "user": "me"}
        made = (await ask("POST", "/v1/generate", body)).json()
        await ask.get(f"/v1/requests/{made['request_id']}/events")
        await ask.get(f"/v1/requests/{made['request_id']}")
    for prompt in ("[hang]", "[silence]"):
        await _request_that_is_cancelled(ask, prompt)
    await ask.get("/v1/requests?limit=100")
    await ask("GET", "/v1/requests?limit=0")


async def _request_that_is_cancelled(ask: Asking, prompt: str) -> None:
    made = (await ask("POST", "/v1/responses", {"input": prompt, "background": True})).json()
    path = f"/v1/responses/{made['id']}"
    request = f"/v1/requests/{made['id'].removeprefix('resp_')}"

    async def runs() -> bool:
        await ask.get(path)
        return str((await ask.get(request))["state"]) == "running"

    await wait_until_async(runs, "it runs")
    await ask("POST", f"{path}/cancel", headers={"content-type": "application/json"})
    await ask("GET", f"{path}?stream=true")
    await ask("DELETE", request)
    await ask("GET", f"{request}/events")
    await ask.get(request)


async def _without_a_worker(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a gateway shows of requests that wait, of the dead-letter list, and of a pool in trouble."""
    site = Site()
    ask = Asking(site.http, document)
    base = "http://gateway"
    site.gateway.start()
    await wait_until(lambda: site.store.is_listening, "the gateway listens")
    try:
        for path in ("/v1/models", "/healthz", "/readyz", "/v1/admin/overview", "/v1/admin/doctor"):
            await ask("GET", f"{base}{path}")
        poisoned, lost = await site.poison(), await site.poison()
        await site.enlist()
        running, waiting = await site.submit(), await site.submit(user="me")
        await site.store.take("w1", 1)
        await site.store.claim("w1", [running])
        await ask("GET", f"{base}/v1/requests/{waiting}")
        monkeypatch.setattr(site.gateway.pool, "wait_s", lambda position: 1.5)
        for path in (f"requests/{waiting}", "admin/overview", "admin/doctor", "admin/dead", f"admin/dead/{lost}"):
            await ask("GET", f"{base}/v1/{path}")
        await ask("POST", f"{base}/v1/admin/dead/{poisoned}/redrive")
        forget(site.store, "jobs")
        await ask("GET", f"{base}/v1/admin/dead/{lost}")
        await ask("DELETE", f"{base}/v1/admin/dead/{lost}")
        await ask("DELETE", f"{base}/v1/admin/requests/{await site.submit()}")
        await ask("DELETE", f"{base}/v1/admin/callers/ada/requests")
    finally:
        await site.http.aclose()
        await site.gateway.stop()


async def test_every_route_describes_what_is_refused_before_it(tmp_path: Path) -> None:
    """By the door, by the length of a query, and without a key; with a key that may too little, where one must be an
    administrator's."""
    keys = tmp_path / "keys.toml"
    _, plain = create_key(keys, name="plain")
    settings = Settings(api_keys_file=keys)
    door = Door(settings, "127.0.0.1")
    transport = httpx2.ASGITransport(create_app(Gateway(settings, MemoryTransport(), Metrics(), door)))
    body = {"content-type": "application/json"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=body) as http:
        ask = Asking(http, Document((await http.get("/openapi.json")).json()))
        for path, operations in ask.document.whole["paths"].items():
            for method, operation in operations.items():
                asked = method.upper(), re.sub(r"{\w+}", "g1.x", path)
                statuses = [
                    (await ask(*asked, headers={"host": "evil.example"})).status_code,
                    (await ask(*asked, headers={"origin": "https://evil.example"})).status_code,
                    (await ask(*asked, params={"x": "x" * 5000})).status_code,
                ]
                assert statuses == [421, 403, 400], asked
                if "401" in operation["responses"]:
                    assert (await ask(*asked)).status_code == 401, asked
                if path.startswith(("/v1/admin/", "/metrics")):
                    assert (await ask(*asked, headers={"x-api-key": plain})).status_code == 403, asked


async def test_a_bug_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bug(*args: Any) -> None:
        raise ZeroDivisionError

    async with _asking() as ask:
        monkeypatch.setattr("penstock.api.openai.routes.authenticate", bug)
        assert (await ask("GET", "/v1/models")).status_code == 500


async def _rare_answers(document: Document) -> None:
    """Those that need a queue that moves, a gateway that stops, or a worker that Redis has lost."""
    info = WorkerInfo(id="w", models={}, num_slots=1, num_free=1, engines={"mock": Engines(num_up=1, num=2)})
    for known in (info, None):
        row = _worker_row(Holding(worker="w", lease_s=-1.0, held=(), info=known))
        document.check_value({"$ref": "#/components/schemas/WorkerRow"}, msgspec.to_builtins(row))
    limited = await Ops(Metrics(), list, dict, degraded=lambda: ["an engine is away"]).readyz(Request({"type": "http"}))
    document.check("GET", "/readyz", limited.status_code, limited.headers["content-type"], bytes(limited.body))
    answer = object.__new__(NativeResponse)
    answer.stream = RelayStream(JOB, None, 0.0)
    queued = answer.queued_frame(1, None) + answer.queued_frame(2, 1.5)
    document.check_events({"$ref": "#/components/schemas/GenerateEvent"}, queued)
    events = ResponseEvents(JOB)
    broken = events.broken(Draining("It stops.")) + events.broken(InvalidRequest("No.", param="input"))
    document.check_events({"$ref": "#/components/schemas/ResponseEvent"}, broken)
