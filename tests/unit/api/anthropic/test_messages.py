"""Anthropic's Messages, the pure part: bodies to drafts, tokens to events and blocks, errors in its form."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given

from penstock import errors
from penstock.api.anthropic.body import REFUSED, MessagesBody, draft_of
from penstock.api.anthropic.dialect import ANTHROPIC
from penstock.api.anthropic.events import MessageEvents, events_of
from penstock.api.hints import taken
from penstock.api.intake import Draft
from penstock.errors import InvalidRequest
from penstock.event import Done, Terminal
from penstock.http.body_json import validate
from penstock.job import Job, Message, Sampling
from penstock.rich_token import RichToken, Token, ToolCall
from tests.support.answers import ENDS, JOB_ID, TOKENS, done, told

TOOL = {"name": "f", "input_schema": {"type": "object"}}
HI = [{"role": "user", "content": "hi"}]


def _draft(**data: Any) -> Draft:
    body = {"max_tokens": 9, "messages": HI, **data}
    return draft_of(validate(MessagesBody, taken(body, "messages", REFUSED)))


def _job(*stop: str) -> Job:
    return Job(id=JOB_ID, model="m", messages=(Message("user", "hi"),), sampling=Sampling(stop=stop))


def _refused(**data: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        _draft(**data)
    return caught.value.param


def test_a_thread_is_refused_so_that_the_sdk_goes_on_without_one() -> None:
    """By these details it knows that it must send the whole conversation instead."""
    with pytest.raises(InvalidRequest) as caught:
        _draft(thread={"type": "create"})
    assert (caught.value.param, caught.value.code) == ("thread", "unsupported_parameter")
    error = ANTHROPIC.envelope(caught.value, "r")["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "details" not in ANTHROPIC.envelope(errors.UnsupportedParameter("No.", param="speed"), "r")["error"]


def test_a_conversation_with_a_tool() -> None:
    draft = _draft(
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
        tools=[TOOL | {"description": "d"}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["."],
        metadata={"user_id": "u"},
        messages=[
            *HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ä"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                    {"type": "text", "text": "again"},
                ],
            },
        ],
    )
    assert draft.messages == (
        Message("system", "be\nbrief"),
        Message("user", "hi"),
        Message("assistant", "I look.", tool_calls=(ToolCall(0, "t1", "f", '{"a": "ä"}'),), reasoning="hm"),
        Message("tool", "Error: no", tool_call_id="t1"),
        Message("user", "again"),
    )
    assert draft.sampling["tools"] == (
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
    )
    assert (draft.sampling["tool_choice"], draft.sampling["parallel_tool_calls"]) == ("required", False)
    assert (draft.sampling["stop"], draft.user, draft.max_tokens) == ((".",), "u", 9)


def _user(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


_TEXT = {"type": "text", "text": "x"}
_CACHED = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"messages": _user({"type": "document", "source": {}})}, "messages.0.content.0"),
        ({"messages": _user({"type": "tool_use", "id": "t", "name": "f", "input": {}})}, "messages.0.content.0"),
        ({"messages": _user({"type": "tool_result", "tool_use_id": "t"})}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop": "x"}, "stop"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
    ],
)
def test_what_is_not_there_is_refused_by_name(data: dict[str, Any], param: str) -> None:
    assert _refused(**data) == param


def test_parameters_without_effect_are_accepted() -> None:
    draft = _draft(thinking={"type": "disabled"}, service_tier="auto", cache_control=None)
    assert Sampling(**draft.sampling).named() == []
    cached = _draft(system=[_TEXT | _CACHED], messages=_user(_TEXT | _CACHED), **_CACHED)
    assert cached.messages == _draft(system=[_TEXT], messages=_user(_TEXT)).messages


def test_the_events_of_a_call() -> None:
    events = MessageEvents(_job())
    call = RichToken(tool_calls=(ToolCall(0, "t1", "f", '{"a":1}'),))
    frames = events.opening() + events.all_of(["I look.", call]) + events.end(done("tool_calls", 2))
    assert [one["type"] for one in told(b"".join(frames))] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"),
    ]
    assert events_of(_job(), ["I look.", call]).message(done("tool_calls", 2))["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    ]


def test_the_stop_reason_is_reported_as_far_as_it_is_known() -> None:
    def reason(end: Done, *stop: str) -> tuple[str, None]:
        message = events_of(_job(*stop), ["a"]).message(end)
        return message["stop_reason"], message["stop_sequence"]

    assert reason(done("stop")) == ("end_turn", None)
    assert reason(done("stop"), ".") == ("stop_sequence", None)
    assert reason(done("length"), ".") == ("max_tokens", None)
    assert reason(done("content_filter")) == ("refusal", None)


@pytest.mark.parametrize("stop", [(), (".",)])
@pytest.mark.parametrize("ended", ["stop", "tool_calls"])
def test_a_call_is_tool_use_however_the_engine_ends_it(ended: Any, stop: tuple[str, ...]) -> None:
    call = RichToken(tool_calls=(ToolCall(0, "t1", "f", "{}"),))
    assert events_of(_job(*stop), ["a", call]).message(done(ended))["stop_reason"] == "tool_use"
    ending = cast("list[dict[str, Any]]", told(b"".join(events_of(_job(*stop), [call]).end(done(ended)))))
    assert ending[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("arguments", ["", " ", "\n", "null", " null "])
def test_a_call_without_arguments_has_an_empty_input(arguments: str) -> None:
    call = RichToken(tool_calls=(ToolCall(0, "t1", "f", arguments),))
    assert events_of(_job(), [call]).message(done("tool_calls"))["content"] == [
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    ]
    assert events_of(_job(), [call]).failure(done("tool_calls")) is None


def test_a_context_that_is_too_long_has_the_words_and_the_code_that_clients_look_for() -> None:
    error = ANTHROPIC.envelope(errors.ContextLengthExceeded("9 of 8 tokens"), "r")["error"]
    assert error["message"] == "prompt is too long: 9 of 8 tokens"
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")


def test_a_tool_input_that_is_not_an_object_is_an_error_unless_it_was_cut_off() -> None:
    bad = RichToken(tool_calls=(ToolCall(0, "t1", "f", "{oops"),))
    assert isinstance(events_of(_job(), [bad]).failure(done("tool_calls")), errors.BackendError)
    cut = events_of(_job(), ["a", bad])
    assert cut.failure(done("length")) is None
    assert [block["type"] for block in cut.message(done("length"))["content"]] == ["text"]
    streamed = told(b"".join(events_of(_job(), [bad]).end(done("tool_calls"))))
    assert streamed[-1]["type"] == "error"


@given(TOKENS, ENDS)
def test_the_events_tell_the_whole_message(tokens: list[Token], end: Terminal) -> None:
    events = MessageEvents(_job())
    seen = told(b"".join(events.opening() + events.all_of(tokens) + events.end(end)))
    texts: dict[Any, str] = {}
    for one in seen:
        if one["type"] == "content_block_start":
            assert one["index"] == len(texts)
            texts[one["index"]] = ""
        elif one["type"] == "content_block_delta":
            delta = cast("dict[str, str]", one["delta"])
            texts[one["index"]] += delta.get("text", "") + delta.get("thinking", "") + delta.get("partial_json", "")
    assert texts == {part.index: part.text for part in events.parts}
    error = events_of(_job(), tokens).failure(end)
    assert seen[-1]["type"] == ("message_stop" if error is None else "error")
    stops = [one["index"] for one in seen if one["type"] == "content_block_stop"]
    assert len(stops) == len(set(stops))
    if error is None:
        assert sorted(stops, key=str) == sorted(texts, key=str)
        assert isinstance(end, Done)
        assert (
            events_of(_job(), tokens).message(end)["stop_reason"]
            == cast("dict[str, str]", seen[-2]["delta"])["stop_reason"]
        )


def test_errors_in_its_form() -> None:
    envelope = ANTHROPIC.envelope(errors.InvalidRequest("No.", param="x"), "r")
    said = {"type": "invalid_request_error", "message": "No.", "code": "invalid_request", "param": "x"}
    assert envelope == {"type": "error", "error": said, "request_id": "r"}
    kinds = {
        code: ANTHROPIC.envelope(kind("?"), "r")["error"]["type"]
        for code, kind in errors.CODES.items()
        if code in ("invalid_api_key", "model_not_allowed", "model_not_found", "body_too_large", "queue_full")
        or code in ("no_workers", "deadline_exceeded", "backend_error", "cancelled", "request_timeout")
    }
    assert kinds == {
        "invalid_api_key": "authentication_error",
        "model_not_allowed": "permission_error",
        "model_not_found": "not_found_error",
        "body_too_large": "request_too_large",
        "queue_full": "rate_limit_error",
        "no_workers": "overloaded_error",
        "deadline_exceeded": "timeout_error",
        "backend_error": "api_error",
        "cancelled": "api_error",
        "request_timeout": "invalid_request_error",
    }
