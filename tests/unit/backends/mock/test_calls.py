"""The mock's tool calls: which tools, how many at once, and what `tool_choice` changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.backends.mock.calls import calls_of
from penstock.job import Job, Message, Sampling
from penstock.rich_token import ToolCall, join


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER, TIME, FINAL = tool("get_weather", city={"type": "string"}), tool("get_time"), tool("final", x={"const": 1})
ASKED = Message("user", "hello")


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def calls(*messages: Message, tools: Any = (WEATHER, TIME, FINAL), **sampling: Any) -> tuple[ToolCall, ...]:
    job = Job(id="j", model="mock", messages=messages, sampling=Sampling(tools=tools, **sampling))
    return join(calls_of(job, key=7)).tool_calls


def names(*messages: Message, **sampling: Any) -> list[str]:
    return [call.name for call in calls(*messages, **sampling)]


def answered(*called: str) -> list[Message]:
    made = tuple(ToolCall(index, f"c{index}", name, "{}") for index, name in enumerate(called))
    return [Message("assistant", "", tool_calls=made), *(Message("tool", "17", tool_call_id=one.id) for one in made)]


def test_several_calls_have_numbers_ids_and_arguments_of_their_own() -> None:
    both = calls(ASKED)
    assert [(call.index, call.name) for call in both] == [(0, "get_weather"), (1, "get_time")]
    assert len({call.id for call in both}) == 2
    assert list(json.loads(both[0].arguments)) == ["city"]
    assert both[1].arguments == "{}"
    again, other = calls(ASKED), calls(ASKED, tools=(WEATHER, WEATHER))
    assert again == both
    assert other[0].arguments != other[1].arguments


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("use get_time", ["get_time"]),
        ("final and get_weather", ["get_weather", "final"]),
        ("get_times, finally", ["get_weather", "get_time"]),
        ("(get_time).", ["get_time"]),
    ],
)
def test_the_tools_that_the_user_names_are_called(text: str, found: list[str]) -> None:
    assert names(Message("user", text)) == found


def test_parallel_calls_can_be_refused() -> None:
    assert names(ASKED, parallel_tool_calls=False) == ["get_weather"]
    assert names(ASKED, parallel_tool_calls=True) == ["get_weather", "get_time"]


def test_the_choice_of_a_tool_counts() -> None:
    assert names(ASKED, tool_choice="none") == []
    assert names(ASKED, tool_choice="auto") == names(ASKED, tool_choice="required") == ["get_weather", "get_time"]
    assert names(ASKED, tool_choice=named("final")) == ["final"]
    assert names(ASKED, tool_choice=named("unknown")) == []


def test_a_tools_answer_is_answered_in_words_unless_a_call_is_demanded() -> None:
    so_far = [ASKED, *answered("get_weather")]
    assert names(*so_far) == names(*so_far, tool_choice="auto") == []
    assert names(*so_far, tool_choice=named("get_weather")) == ["get_weather"]
    assert names(*so_far, tool_choice="required") == ["get_time", "final"]
    assert names(*so_far, *answered("get_time"), tool_choice="required") == ["final"]
    everything = [*so_far, *answered("get_time", "final")]
    assert names(*everything, tool_choice="required") == ["get_weather", "get_time"]
    assert names(*everything, ASKED, tool_choice="auto") == ["get_weather", "get_time"]


def test_arguments_are_an_object_also_where_the_parameters_do_not_demand_one() -> None:
    for parameters in (None, {}, {"properties": {"a": {"type": "integer"}}}):
        (call,) = calls(ASKED, tools=({"type": "function", "function": {"name": "f", "parameters": parameters}},))
        assert isinstance(json.loads(call.arguments), dict)
