"""The OpenAPI document: it describes every route, in names for generated clients, and every answer is as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.anthropic.events import MessageEvents, events_of
from penstock.api.app import create_app
from penstock.api.native import NativeResponse
from penstock.api.openai.chat import ChatForm
from penstock.api.openai.completions import CompletionForm
from penstock.api.openai.form import Form
from penstock.api.responses.events import ResponseEvents, response_of
from penstock.event import Done, Terminal
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader, RelayStream, Turn
from penstock.job import Job, Message
from penstock.metrics import Metrics
from penstock.rich_token import RichToken, Token, join
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from tests.support.answers import ENDS, JOB_ID, TOKENS
from tests.support.document import Document, Schema

OPERATIONS = {
    "generate": "post /v1/generate",
    "requests_list": "get /v1/requests",
    "requests_retrieve": "get /v1/requests/{request_id}",
    "requests_cancel": "delete /v1/requests/{request_id}",
    "requests_events": "get /v1/requests/{request_id}/events",
    "chat_completions_create": "post /v1/chat/completions",
    "completions_create": "post /v1/completions",
    "embeddings_create": "post /v1/embeddings",
    "models_list": "get /v1/models",
    "models_retrieve": "get /v1/models/{model}",
    "responses_create": "post /v1/responses",
    "responses_retrieve": "get /v1/responses/{response_id}",
    "responses_delete": "delete /v1/responses/{response_id}",
    "responses_input_items_list": "get /v1/responses/{response_id}/input_items",
    "responses_cancel": "post /v1/responses/{response_id}/cancel",
    "messages_create": "post /v1/messages",
    "ollama_chat": "post /api/chat",
    "ollama_generate": "post /api/generate",
    "ollama_embed": "post /api/embed",
    "ollama_embeddings": "post /api/embeddings",
    "ollama_show": "post /api/show",
    "ollama_tags": "get /api/tags",
    "ollama_ps": "get /api/ps",
    "ollama_version": "get /api/version",
    "messages_count_tokens": "post /v1/messages/count_tokens",
    "tokenize": "post /tokenize",
    "detokenize": "post /detokenize",
    "tokenizer_info": "post /tokenizer_info",
    "tokenizer_info_retrieve": "get /tokenizer_info",
    "rerank": "post /v1/rerank",
    "rerank_2": "post /rerank",
    "rerank_3": "post /v2/rerank",
    "score": "post /v1/score",
    "score_2": "post /score",
    "admin_overview": "get /v1/admin/overview",
    "admin_doctor": "get /v1/admin/doctor",
    "admin_dead_list": "get /v1/admin/dead",
    "admin_dead_retrieve": "get /v1/admin/dead/{request_id}",
    "admin_dead_redrive": "post /v1/admin/dead/{request_id}/redrive",
    "admin_dead_drop": "delete /v1/admin/dead/{request_id}",
    "admin_requests_cancel": "delete /v1/admin/requests/{request_id}",
    "admin_callers_cancel": "delete /v1/admin/callers/{caller}/requests",
    "livez": "get /livez",
    "readyz": "get /readyz",
    "healthz": "get /healthz",
    "health": "get /health",
    "ping": "get /ping",
    "version": "get /version",
    "metrics": "get /metrics",
}
RAW = {"/metrics": "text/plain"}  # answers that have no schema to speak of
FREE = {  # a client's own, or always empty
    "MessageToolUseBlock.input",
    "OllamaCalledFunctionAnswer.arguments",
    "OllamaShowAnswer.model_info",
    "ResponseFunctionTool.parameters",
    "ResponseOutputText.annotations",
    "ResponseReasoningItem.summary",
    "ResponseTextFormat.schema",
}
JSON = "application/json"


@pytest.fixture(scope="module")
def document() -> Document:
    app: Any = create_app(Gateway(Settings(), MemoryTransport(), Metrics()))
    return Document(app.app.openapi())


# ── the document itself ──────────────────────────────────────────────────────────────────────────────────────────


def test_every_operation_has_a_name_that_does_not_change(document: Document) -> None:
    named = {
        operation["operationId"]: f"{method} {path}"
        for path, operations in document.whole["paths"].items()
        for method, operation in operations.items()
    }
    assert named == OPERATIONS
    assert all(
        operation["tags"] for operations in document.whole["paths"].values() for operation in operations.values()
    )


def test_every_answer_has_a_schema(document: Document) -> None:
    """A route whose answer is a `{}`, a bare object or a string is `unknown` to a generated client."""
    for method, path, status, documented in document.responses():
        content = dict(documented["content"])
        if path in RAW and status == "200":
            assert content == {RAW[path]: {"schema": {"type": "string"}}}
            continue
        assert next(iter(content)) == ("text/event-stream" if path.endswith("/events") and status == "200" else JSON)
        for kind, one in content.items():
            schema = document.schemas[one["schema"]["$ref"].rpartition("/")[2]]
            assert schema["properties"] if kind == JSON else schema["oneOf"], (method, path, status)


def test_every_field_of_an_answer_has_a_type(document: Document) -> None:
    answers = {mark.partition(".")[0] for mark in document.marks() if "." in mark}
    untyped = {
        f"{name}.{field}"
        for name in answers
        for field, schema in document.schemas[name].get("properties", {}).items()
        if _is_open(schema)
    }
    assert untyped == FREE


def _is_open(schema: Schema) -> bool:
    """Whether some of its values may be anything."""
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if branches:
        return any(map(_is_open, branches))
    kind = schema.get("type")
    if kind == "array":
        return any(map(_is_open, schema.get("prefixItems") or [schema.get("items", {})]))
    if kind == "object":
        rest = schema.get("additionalProperties")
        return "properties" not in schema and (not isinstance(rest, dict) or _is_open(rest))
    return kind is None and "$ref" not in schema and "const" not in schema and "enum" not in schema


def test_every_schema_is_there_under_a_plain_name(document: Document) -> None:
    used = set(_refs(document.whole))
    assert used <= document.schemas.keys()
    assert [name for name in document.schemas if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)] == []
    unused = document.schemas.keys() - used
    assert unused == set()


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value.rpartition("/")[2]
            elif name == "mapping":
                yield from (one.rpartition("/")[2] for one in value.values())
            else:
                yield from _refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _refs(value)


def test_no_schema_has_a_default(document: Document) -> None:
    """Generators of clients read a field with a default as one that is always there."""
    with_default = [
        f"{name}.{field}"
        for name, schema in document.schemas.items()
        for field, one in schema.get("properties", {}).items()
        if "default" in one
    ]
    assert with_default == []


def test_every_error_has_its_envelope_and_those_of_every_route_are_there(document: Document) -> None:
    for method, path, status, documented in document.responses():
        if status < "400":
            continue
        owner = {"/v1/messages": "Anthropic", "/api": "Ollama"}
        envelope = next((name for start, name in owner.items() if path.startswith(start)), "") + "ErrorAnswer"
        assert documented["content"] == {JSON: {"schema": {"$ref": f"#/components/schemas/{envelope}"}}}, (method, path)
        assert documented["description"].startswith("`"), (method, path, status)
    everywhere = {"400", "403", "421", "500", "503"}
    statuses: dict[str, set[str]] = {}
    for method, path, status, _ in document.responses():
        statuses.setdefault(f"{method} {path}", set()).add(status)
    assert [name for name, each in statuses.items() if not everywhere <= each] == []


# ── any answer, by its encoders alone ────────────────────────────────────────────────────────────────────────────

JOB = Job(id=JOB_ID, model="m", messages=(Message("user", "hi"),))


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _named(tokens: list[Token]) -> list[Token]:
    """`tokens` with a name in the first part of each call, as a backend gives it."""
    named, known = [], set[int]()
    for token in tokens:
        if isinstance(token, RichToken):
            calls = []
            for call in token.tool_calls:
                is_first = call.index not in known
                known.add(call.index)
                calls.append(msgspec.structs.replace(call, id=call.id or "c", name="f") if is_first else call)
            token = msgspec.structs.replace(token, tool_calls=tuple(calls))
        named.append(token)
    return named


@given(TOKENS.map(_named), ENDS)
def test_any_message_is_as_described(document: Document, tokens: list[Token], end: Terminal) -> None:
    events = MessageEvents(JOB)
    frames = b"".join([*events.opening(), *events.all_of(tokens), *events.end(end)])
    document.check_events(_ref("MessageEvent"), frames)
    if isinstance(end, Done) and end.finish_reason != "cancelled" and events_of(JOB, tokens).failure(end) is None:
        document.check_value(_ref("MessageAnswer"), _decoded(events_of(JOB, tokens).message(end)))


@given(TOKENS.map(_named), ENDS, st.integers(0, 12))
def test_any_response_is_as_described(document: Document, tokens: list[Token], end: Terminal, at: int) -> None:
    events = ResponseEvents(JOB)
    frames = b"".join([*events.opening(), *events.all_of(tokens), *events.end(end)])
    document.check_events(_ref("ResponseEvent"), frames)
    for some, last in ((tokens, end), (tokens[:at], None)):
        document.check_value(_ref("ResponseAnswer"), _decoded(response_of(JOB, some, last)))


@given(TOKENS.map(_named), st.sampled_from(["stop", "length", "tool_calls", "content_filter"]), st.booleans())
@pytest.mark.parametrize(
    ("kind", "whole", "event"),
    [(ChatForm, "ChatCompletion", "ChatCompletionEvent"), (CompletionForm, "TextCompletion", "TextCompletionEvent")],
)
def test_any_completion_is_as_described(
    document: Document, kind: type[Form], whole: str, event: str, tokens: list[Token], reason: str, includes_usage: bool
) -> None:
    form = kind(JOB_ID, "m", 1, includes_usage=includes_usage)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    frames = [*form.open(0), *(form.token(0, token) for token in tokens), form.finish(0, reason), form.close(usage)]
    document.check_events(_ref(event), b"".join(frames))
    document.check_value(_ref(whole), msgspec.json.decode(form.whole([form.choice(0, join(tokens), reason)], usage)))


@given(TOKENS.map(_named), ENDS)
def test_any_answer_of_generate_is_as_described(document: Document, tokens: list[Token], end: Terminal) -> None:
    answer = _native()
    frames = [*answer.token_frames(Reader(answer.stream, Turn()), 0, tokens), answer.end_frame(_reader(answer), end)]
    document.check_events(_ref("GenerateEvent"), b"".join(frames))
    if isinstance(end, Done) and end.finish_reason != "cancelled":
        answer.stream.tokens = tokens
        document.check_value(_ref("GenerateAnswer"), msgspec.json.decode(answer.whole([end])))


def _native() -> NativeResponse:
    answer = object.__new__(NativeResponse)
    answer.stream = RelayStream(JOB, None, 0.0)
    return answer


def _reader(answer: NativeResponse) -> Reader:
    return Reader(answer.stream, Turn())


def _decoded(value: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
