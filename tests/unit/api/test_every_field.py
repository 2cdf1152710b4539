"""Every field of every body is honoured (the request becomes another one), refused, or in a table of `hints`.

The test walks over one body of each API that has a part of every kind, and gives each field values of its type.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from penstock.api.anthropic.body import MessagesBody
from penstock.api.hints import GIVEN_BACK, NOTHING
from penstock.api.native import GenerateBody
from penstock.api.ollama.body import OllamaChatBody, OllamaEmbedBody, OllamaGenerateBody
from penstock.api.openai import embeddings
from penstock.api.openai.chat import ChatBody
from penstock.api.openai.completions import CompletionBody
from penstock.api.openai.embeddings import EmbeddingBody
from penstock.api.responses.body import ResponseBody
from penstock.errors import InvalidRequest
from penstock.http.body_json import validate
from tests.support.drafts import drafts_of

Path = tuple[str | int, ...]

IMAGE = "data:image/png;base64,AAAA"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
TURNS = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "x"},
            {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "sun"},
    {"role": "assistant", "content": [{"type": "text", "text": "fine"}, {"type": "refusal", "refusal": "no"}]},
]
TALK = {
    "messages": TURNS,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "logprobs": True,
}
TEXT = {"type": "text", "text": "x"}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "native": (
        GenerateBody,
        TALK | {"messages": [*TURNS, {"role": "assistant", "tool_calls": [{"id": "d", "name": "f"}]}]},
    ),
    "native of a prompt": (GenerateBody, {"prompt": "x"}),
    "chat": (ChatBody, TALK | STREAMED),
    "completions": (CompletionBody, {"prompt": "x"} | STREAMED),
    "embeddings": (EmbeddingBody, {"input": "x"}),
    "responses": (
        ResponseBody,
        {
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": IMAGE}],
                },
                {"type": "reasoning", "summary": []},
                {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sun"}]},
                {"role": "user", "content": "y"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
            "reasoning": {"effort": "low"},
            "stream": True,
        },
    ),
    "messages": (
        MessagesBody,
        {
            "max_tokens": 9,
            "system": [TEXT],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        TEXT,
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {"type": "image", "source": {"type": "url", "url": "https://x"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "x", "signature": ""},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c",
                            "content": [TEXT, {"type": "image", "source": {"type": "url", "url": "https://x"}}],
                        }
                    ],
                },
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f"},
            "metadata": {"user_id": "u"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
    ),
}
CALLS = {name: {"id": f"of {name}", "function": {"name": name, "arguments": {}}} for name in "fg"}
BODIES["ollama"] = (
    OllamaChatBody,
    {
        "messages": [
            {"role": "user", "content": "x", "images": ["iVBORw0KGgo="]},
            {"role": "assistant", "tool_calls": [CALLS["f"], CALLS["g"]]},
            {"role": "tool", "content": "sun"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "options": {"temperature": 0.5},
        "logprobs": True,
    },
)
BODIES["ollama of a prompt"] = (OllamaGenerateBody, {"prompt": "x", "options": {"temperature": 0.5}, "logprobs": True})
BODIES["ollama-embed"] = (OllamaEmbedBody, {"input": "x"})
# Honoured in the form of the answer, which no draft has.
IN_THE_ANSWER = {
    ("native", "queue_events"),
    ("chat", "stream_options"),
    ("chat", "stream_options.include_usage"),
    ("completions", "stream_options"),
    ("completions", "stream_options.include_usage"),
    ("embeddings", "encoding_format"),
}
# Values of fields that take few of their type.
ALLOWED: dict[tuple[str, str], Any] = {
    ("ollama", "images"): ["iVBORw0KGgo="],
    ("ollama", "messages.*.tool_name"): "g",
    ("ollama", "messages.*.tool_call_id"): "of g",
}
# Parts of models that `BODIES` cannot have, with those that replace them.
ELSEWHERE = {"PlainFormat", "ResponseStreamOptions", "ItemReference"}


def _drafts(api: str, data: dict[str, Any]) -> Any:
    if api == "embeddings":
        return embeddings.draft_of(validate(EmbeddingBody, data))
    named: Any = _api(api)
    return drafts_of(named, data)


def _api(name: str) -> str:
    """Of the body of this name."""
    return name.partition(" ")[0]


def _parts(model: BaseModel, path: Path = ()) -> Iterator[tuple[Path, BaseModel]]:
    """`model` and every model in it, each with its place."""
    yield path, model
    for name, field in type(model).model_fields.items():
        yield from _parts_of(getattr(model, name), (*path, field.alias or name))


def _parts_of(value: Any, path: Path) -> Iterator[tuple[Path, BaseModel]]:
    if isinstance(value, BaseModel):
        yield from _parts(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _parts_of(item, (*path, index))


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _kinds(member)
    elif annotation is not type(None):
        yield annotation


def _values(annotation: Any) -> Iterator[Any]:
    """Some values of this type; not all of them need be allowed."""
    for kind in _kinds(annotation):
        if get_origin(kind) is Literal:
            yield from get_args(kind)
        elif get_origin(kind) is list:
            yield from ([item] for item in _values(get_args(kind)[0]))
            yield []
        elif get_origin(kind) is dict:
            yield from ({"5": value} for value in _values(get_args(kind)[1]))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield _least(kind)
        else:
            yield from _PLAIN.get(kind, ("probe", {"x": 1}, 1))


_PLAIN: dict[Any, tuple[Any, ...]] = {
    str: ("probe", "https://probe"),
    bool: (True, False),
    int: (1, 2, 3, 2048, 30_000),
    float: (0.25, 1, 1.5, 30.0),
}


def _least(kind: type[BaseModel]) -> dict[str, Any]:
    """What is required of a model."""
    fields = kind.model_fields.items()
    return {field.alias or name: next(_values(field.annotation)) for name, field in fields if field.is_required()}


def _put(data: Any, path: Path, value: Any) -> Any:
    changed = copy.deepcopy(data)
    here = changed
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    return changed


def _at(data: Any, path: Path) -> Any:
    """What is at a place; None for nothing."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else data[part]
    return data


def _dotted(path: Path) -> str:
    return ".".join("*" if isinstance(part, int) else part for part in path)


def _outcome(api: str, data: dict[str, Any], path: Path, plain: Any) -> str:
    """What became of the field at `path` of `data`."""
    try:
        return "no effect" if _drafts(api, copy.deepcopy(data)) == plain else "honoured"
    except InvalidRequest as error:
        name = ".".join(map(str, path))
        is_own = error.param is not None and (error.param == name or error.param.startswith(f"{name}."))
        return "refused" if is_own else "honoured"  # of another field, which it contradicts


def _places() -> dict[tuple[str, str], list[tuple[str, Path, Any]]]:
    """By API and field: each place of it in `BODIES`, with its type."""
    found: dict[tuple[str, str], list[tuple[str, Path, Any]]] = {}
    for name, (model, body) in BODIES.items():
        for path, part in _parts(validate(model, copy.deepcopy(body))):
            for attribute, field in type(part).model_fields.items():
                place = (*path, field.alias or attribute)
                found.setdefault((_api(name), _dotted(place)), []).append((name, place, field.annotation))
    return found


PLACES = _places()


@pytest.mark.parametrize(("api", "field"), PLACES)
def test_a_field_is_honoured_or_refused_or_in_a_table(api: str, field: str) -> None:
    outcomes: set[str] = set()
    has_one_value = True
    nothing = [value for row in NOTHING if api in row.apis and row.path == field for value in row.values or ()]
    for name, path, annotation in PLACES[api, field]:
        body = BODIES[name][1]
        plain = _drafts(name, copy.deepcopy(body))
        values = [value for value in [*_values(annotation)] or ["probe"] if value not in nothing]
        if (api, field) in ALLOWED:
            values.append(ALLOWED[api, field])
        elif isinstance(now := _at(body, path), list):
            values.append(now[:-1])
        has_one_value = has_one_value and len(values) < 2
        outcomes |= {_outcome(name, _put(body, path, value), path, plain) for value in values}
    is_listed = any(api in row.apis and row.path == field for row in GIVEN_BACK)
    if "honoured" in outcomes or (api, field) in IN_THE_ANSWER or is_listed:
        return
    assert has_one_value or outcomes != {"refused"}, "no value of its type is allowed"
    assert has_one_value or outcomes == {"refused"}, "it has no effect, and no table has it"


def test_the_bodies_have_a_part_of_every_kind() -> None:
    seen: dict[type[BaseModel], set[str]] = {}
    for model, body in BODIES.values():
        parts = _parts(validate(model, copy.deepcopy(body)))
        seen.setdefault(model, set()).update(type(part).__name__ for _, part in parts)
    for model, names in seen.items():
        assert _models(model, set()) - names - ELSEWHERE == set()


def _models(model: type[BaseModel], found: set[str]) -> set[str]:
    if model.__name__ not in found:
        found.add(model.__name__)
        for field in model.model_fields.values():
            for kind in _leaves(field.annotation):
                _models(kind, found)
    return found


def _leaves(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in _kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        elif get_origin(kind) in (list, dict):
            yield from _leaves(get_args(kind)[-1])


def test_a_field_of_a_table_of_what_is_given_back_exists() -> None:
    assert {(api, row.path) for row in GIVEN_BACK for api in row.apis} <= PLACES.keys()
