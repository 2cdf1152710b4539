"""The field that a refusal names, in the nested parts of every API's body."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from penstock.api.anthropic.body import MessagesBody
from penstock.api.openai.chat import ChatBody
from penstock.api.responses.body import ResponseBody
from penstock.errors import InvalidRequest
from penstock.http.body_json import validate

HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def _refused(model: type[BaseModel], data: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        validate(model, {"model": "m", **data})
    return caught.value.param, caught.value.message


def _tool(function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function}]}


def _part(**part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def _call(function: Any, **more: Any) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": function, **more}
    return {"messages": [HI, {"role": "assistant", "tool_calls": [call]}]}


def _schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _choice(function: Any, **more: Any) -> dict[str, Any]:
    return {"tools": [TOOL], "tool_choice": {"type": "function", "function": function, **more}}


@pytest.mark.parametrize(
    ("more", "param", "problem"),
    [
        (_tool({"name": 5}), "tools.0.function.name", "must be a string"),
        (_tool({"name": ""}), "tools.0.function.name", "must not be empty"),
        (_tool({}), "tools.0.function.name", "is required"),
        (_tool({"name": "f", "x": 1}), "tools.0.function.x", None),
        (_tool({"name": "f", "parameters": 3}), "tools.0.function.parameters", "must be an object"),
        (_tool(3), "tools.0.function", "must be an object"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "is required"),
        ({"tools": [TOOL | {"type": "odd"}]}, "tools.0.type", "must be 'function'"),
        (_part(type="image_url", image_url={"url": ""}), "messages.0.content.0.image_url.url", "must not be empty"),
        (_part(type="image_url", image_url={}), "messages.0.content.0.image_url.url", "is required"),
        (_part(type="image_url", image_url={"url": 5}), "messages.0.content.0.image_url.url", "must be a string"),
        (_part(type="image_url", image_url=5), "messages.0.content.0.image_url", "must be an object"),
        (_part(type="image_url"), "messages.0.content.0.image_url", "is required"),
        (_part(type="image_url", image_url={"url": "http://a"}, x=1), "messages.0.content.0.x", None),
        (_part(type="text", text=5), "messages.0.content.0.text", "must be a string"),
        (_part(type="text"), "messages.0.content.0.text", "is required"),
        (_call({"name": "f", "arguments": [1]}), "messages.1.tool_calls.0.function.arguments", "must be a string"),
        (_call({"arguments": "{}"}), "messages.1.tool_calls.0.function.name", "is required"),
        (_call({"name": "f", "arguments": "", "x": 1}), "messages.1.tool_calls.0.function.x", None),
        (_schema({"schema": {}}), "response_format.json_schema.name", "is required"),
        (_schema({"name": ""}), "response_format.json_schema.name", "must not be empty"),
        (_schema({"name": "n", "schema": 5}), "response_format.json_schema.schema", "must be an object"),
        (_schema({"name": "n", "x": 1}), "response_format.json_schema.x", None),
        (_choice({"name": 5}), "tool_choice.function.name", "must be a string"),
        (_choice({}), "tool_choice.function.name", "is required"),
        (_choice({"name": "f", "x": 1}), "tool_choice.function.x", None),
        (_choice({"name": "f"}, x=1), "tool_choice.x", None),
    ],
)
def test_a_field_of_a_chat_is_named_with_its_whole_path(more: dict[str, Any], param: str, problem: str | None) -> None:
    expected = f"'{param}' {problem}." if problem else f"Unknown field '{param}'."
    assert _refused(ChatBody, {"messages": [HI], **more}) == (param, expected)


def _block(role: str = "user", **block: Any) -> dict[str, Any]:
    return {"max_tokens": 3, "messages": [{"role": role, "content": [block]}]}


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (_block(type="text", text=5), "messages.0.content.0.text"),
        (_block(type="image", source={"type": "url", "url": 5}), "messages.0.content.0.source.url"),
        (_block(type="image", source={"type": "base64", "data": "AAAA"}), "messages.0.content.0.source.media_type"),
        (_block("assistant", type="thinking", thinking=5, signature=""), "messages.0.content.0.thinking"),
        (_block("assistant", type="thinking", signature=""), "messages.0.content.0.thinking"),
        (
            _block(type="tool_result", tool_use_id="t", content=[{"type": "text", "text": 5}]),
            "messages.0.content.0.content.0.text",
        ),
    ],
)
def test_a_field_of_a_block_is_named_with_its_whole_path(data: dict[str, Any], param: str) -> None:
    assert _refused(MessagesBody, data)[0] == param


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": 5}]}, "input.0.arguments"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ],
)
def test_a_field_of_an_item_is_named_with_its_whole_path(data: dict[str, Any], param: str) -> None:
    assert _refused(ResponseBody, data)[0] == param
