"""Fields of one engine, by every API: passed on where the model accepts them, refused by name elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.api.anthropic.body import MessagesBody
from penstock.api.extras import Extras, split
from penstock.api.hints import HINTS, MAX_HINT, extras_of
from penstock.api.native import GenerateBody
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.openai.embeddings import EmbeddingBody
from penstock.api.responses.body import ResponseBody
from penstock.errors import InvalidRequest
from penstock.extras import EXTRAS
from penstock.extras import HINTS as PASSED
from penstock.fleet import Capabilities
from penstock.http.body_json import validate
from tests.support.bodies import CHAT, COMPLETIONS, GENERATE, MESSAGES, RESPONSES
from tests.support.serving import ask, post, serving
from tests.support.upstream import Upstream

_TURN = {"role": "user", "content": "x"}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (GENERATE, {"messages": [_TURN]}),
    (CHAT, {"messages": [_TURN]}),
    (COMPLETIONS, {"prompt": "x"}),
    (RESPONSES, {"input": "x"}),
    (MESSAGES, {"messages": [_TURN], "max_tokens": 2}),
]
NAMES = ["generate", "chat", "completions", "responses", "messages"]


def _model(up: Upstream, **options: str) -> str:
    return "m=openai:" + ",".join(f"{name}={value}" for name, value in {"url": up.url, **options}.items())


async def _error(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await post(port, path, json.dumps(body).encode())
    assert status == 400, answer
    error: dict[str, Any] = json.loads(answer)["error"]
    return error


@pytest.mark.parametrize(("path", "body"), BODIES, ids=NAMES)
async def test_every_api_passes_on_what_the_model_accepts(path: str, body: dict[str, Any]) -> None:
    extras = {"ignore_eos": True, "min_tokens": 2, "structured_outputs": {"regex": "a+"}, "beams": [1, {"a": None}]}
    async with Upstream() as up, serving(models=[_model(up, engine="vllm", accepts="engine+beams")]) as port:
        status, answer = await post(port, path, json.dumps(body | extras | {"stop_token_ids": None}).encode())
    assert status == 200, answer
    (seen,) = up.seen
    assert {name: seen.body.get(name) for name in extras} == extras
    assert "stop_token_ids" not in seen.body


@pytest.mark.parametrize(("path", "body"), BODIES, ids=NAMES)
async def test_every_api_refuses_by_name_what_it_does_not(path: str, body: dict[str, Any]) -> None:
    async with Upstream() as up, serving(models=[_model(up)]) as port:
        error = await _error(port, path, body | {"ignore_eos": True})
        assert "does not support 'ignore_eos'" in error["message"]
        error = await _error(port, path, body | {"beams": 4})
        assert "Unknown field 'beams'" in error["message"]
        error = await _error(port, path, body | {"image_urls": True})
        assert "Unknown field 'image_urls'" in error["message"]
    assert up.seen == []


async def test_a_field_of_another_api_does_not_become_an_extra() -> None:
    async with Upstream() as up, serving(models=[_model(up, engine="vllm")]) as port:
        error = await _error(port, COMPLETIONS, {"prompt": "x", "tools": [{"type": "function"}]})
        assert error["message"] == "Unknown field 'tools'."
    assert up.seen == []


async def test_hints_reach_an_engine_that_knows_them_and_no_other() -> None:
    hints = {"prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low", "service_tier": "flex"}
    body = json.dumps({"messages": [_TURN], **hints}).encode()
    async with Upstream() as up, serving(models=[_model(up, engine="openai")]) as port:
        assert (await post(port, CHAT, body))[0] == 200
        assert (
            up.seen[0].body.items() >= {"prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low"}.items()
        )
        assert "service_tier" not in up.seen[0].body
        assert (await post(port, RESPONSES, json.dumps({"input": "x", "text": {"verbosity": "high"}}).encode()))[
            0
        ] == 200
        assert up.seen[1].body["verbosity"] == "high"
    for options, passed in (
        ({"engine": "vllm"}, set()),
        ({"engine": "any", "accepts": "service_tier"}, {"service_tier"}),
    ):
        async with Upstream() as up, serving(models=[_model(up, **options)]) as port:
            assert (await post(port, CHAT, body))[0] == 200
            assert hints.keys() & up.seen[0].body.keys() == passed


def test_the_document_allows_extras_where_they_are_taken() -> None:
    for kind in (GenerateBody, ChatBody, CompletionBody, ResponseBody, MessagesBody):
        assert "extra" in kind.model_json_schema()["additionalProperties"]["description"]
        with pytest.raises(InvalidRequest, match="Unknown field 'beams'"):
            validate(kind, {"beams": 1})
    assert EmbeddingBody.model_json_schema()["additionalProperties"] is False


def test_the_hints_that_are_passed_on_are_known_extras() -> None:
    assert {row.extra for row in HINTS if row.extra} == set(PASSED)


@pytest.mark.parametrize("value", [None, 5, ["x"], {"a": "b"}, "x" * (MAX_HINT + 1), True])
def test_a_hint_of_another_type_is_not_passed_on(value: Any) -> None:
    assert extras_of({"prompt_cache_key": value}, "chat") == {}


def test_a_hint_is_an_extra_for_a_model_that_accepts_it() -> None:
    extras = Extras({"ignore_eos": True}, {"verbosity": "low", "store": False})
    assert extras.for_model(Capabilities(accepts=("store",))) == {"ignore_eos": True, "store": False}


def test_what_is_split_off() -> None:
    data = {"prompt": "x", "ignore_eos": True, "min_tokens": None, "typo": 1}
    assert split(data, {"prompt"}, EXTRAS) == ({"prompt": "x", "typo": 1}, {"ignore_eos": True})
    assert data == {"prompt": "x", "ignore_eos": True, "min_tokens": None, "typo": 1}
    own = {"ignore_eos": True}
    assert split(own, {"ignore_eos"}, EXTRAS) == (own, {})


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template_kwargs.chat_template"),
        ({"enable_thinking": False, "tokenize": True}, "chat_template_kwargs.tokenize"),
        ("x", "chat_template_kwargs"),
        ([], "chat_template_kwargs"),
    ],
)
def test_a_client_gives_a_template_variables_and_nothing_else(kwargs: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        split({"chat_template_kwargs": kwargs}, frozenset(), EXTRAS)
    assert refused.value.param == param


async def test_an_idempotency_key_names_the_extras_too() -> None:
    body = json.dumps({"messages": [_TURN], "ignore_eos": True}).encode()
    other = json.dumps({"messages": [_TURN], "ignore_eos": True, "min_tokens": 2}).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n" % CHAT.encode()

    async with Upstream() as up, serving(models=[_model(up, engine="vllm")]) as port:
        statuses = [
            (await ask(port, head + b"idempotency-key: k\r\ncontent-length: %d\r\n\r\n%b" % (len(one), one)))[0]
            for one in (body, body, other)
        ]
    assert statuses == [200, 200, 409]
    assert len(up.seen) == 1
