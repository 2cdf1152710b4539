"""OpenAI's Responses, the pure part: bodies to drafts, jobs to responses, tokens to numbered events."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.hints import taken
from penstock.api.intake import Draft
from penstock.api.opened import Opened
from penstock.api.responses.body import (
    NOTHING,
    REFUSED,
    Before,
    ResponseBody,
    described,
    draft_of,
    own_messages,
    request_id_of,
)
from penstock.api.responses.events import ResponseEvents, present, response_of
from penstock.api.responses.routes import ResponsesApiResponse
from penstock.errors import BackendError, Draining, InvalidRequest
from penstock.event import Failed, Terminal, Tokens
from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader, RelayStream, Turn
from penstock.http.body_json import validate
from penstock.http.edge import Call
from penstock.job import Job, Message, Sampling
from penstock.rich_token import Logprob, RichToken, Token, ToolCall
from tests.support.answers import ENDS, JOB_ID, TOKENS, done, told

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def _draft(before: Before = NOTHING, **data: Any) -> Draft:
    return draft_of(validate(ResponseBody, taken({"input": "hi", **data}, "responses", REFUSED)), before)


def _job(draft: Draft) -> Job:
    return Job(
        id=JOB_ID,
        model="m",
        messages=draft.messages,
        sampling=Sampling(max_tokens=draft.max_tokens or 9, **draft.sampling),
        metadata=draft.metadata,
        user=draft.user,
        notes=draft.notes,
        repeated=draft.repeated,
    )


def _refused(**data: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        _draft(**data)
    return caught.value.param


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_input_becomes_messages() -> None:
    assert _draft().messages == (Message("user", "hi"),)
    given_back = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "be"}, {"type": "input_text", "text": "kind"}],
        },
        {"type": "message", "role": "user", "content": "weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    assert _draft(input=given_back).messages == (
        Message("developer", "be\nkind"),
        Message("user", "weather?"),
        Message(
            "assistant",
            "I look.",
            tool_calls=(ToolCall(0, "c1", "f", "{}"), ToolCall(1, "c2", "f", "{}")),
            reasoning="hm",
        ),
        Message("tool", "sun", tool_call_id="c1"),
        Message("tool", "rain", tool_call_id="c2"),
    )


def _thought(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"text": text} for text in texts]} | fields


def test_reasoning_goes_with_the_answer_that_it_led_to() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "Sun."}
    calls = (ToolCall(0, "c1", "f", "{}"),)
    looked, answer = Message("tool", "sun", tool_call_id="c1"), Message("assistant", "Sun.", reasoning="c")
    assert _draft(input=[asked, _thought("a", "b"), call, output, _thought("c"), said]).messages == (
        Message("user", "?"),
        Message("assistant", "", tool_calls=calls, reasoning="a\nb"),
        looked,
        answer,
    )
    assert _draft(input=[said, _thought("b"), call, output]).messages == (
        Message("assistant", "Sun.", tool_calls=calls, reasoning="b"),
        looked,
    )
    assert _draft(input=[_thought("a"), said, _thought("b"), call, output]).messages == (
        Message("assistant", "Sun.", tool_calls=calls, reasoning="a\nb"),
        looked,
    )
    cut_off = _draft(input=[_thought("a"), asked, _thought("b"), asked])
    assert cut_off.messages == (Message("user", "?"), Message("user", "?"))
    summary = [{"type": "summary_text", "text": "short"}, {"type": "summary_text"}, "odd"]
    for thought in (_thought(summary=summary), _thought(summary=summary, content=None)):
        (message,) = _draft(input=[thought, said]).messages or ()
        assert message.reasoning == "short"


def test_images_become_parts() -> None:
    content = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": "http://i", "detail": "low"},
    ]
    (message,) = _draft(input=[{"role": "user", "content": content}]).messages or ()
    assert message.parts[1] == {"type": "image_url", "image_url": {"url": "http://i", "detail": "low"}}
    assert _refused(input=[{"role": "system", "content": content}]) == "input.0.content.1"
    content[1]["image_url"] = "file:///etc/passwd"
    assert _refused(input=[{"role": "user", "content": content}]) == "input.0.content.1.image_url"


def test_the_images_of_results_are_shown_behind_all_of_them() -> None:
    """The APIs of engines have text only in a tool's message, and the results of one answer side by side."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    calls = [{"type": "function_call", "call_id": one, "name": f"f{one}", "arguments": "{}"} for one in "12"]
    one = {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}, image]}
    two = {"type": "function_call_output", "call_id": "2", "output": "y"}
    said = {"role": "assistant", "content": "Sun."}
    results = (Message("tool", "x", tool_call_id="1"), Message("tool", "y", tool_call_id="2"))
    pictures = Message(
        "user", "From the result of f1:", parts=({"type": "text", "text": "From the result of f1:"}, shown)
    )
    assert (_draft(input=[*calls, one, two]).messages or ())[1:] == (*results, pictures)
    behind = _draft(input=[*calls, one, two, said]).messages or ()
    assert behind[1:] == (*results, pictures, Message("assistant", "Sun."))


def test_a_conversation_continues() -> None:
    before = (Message("user", "a"), Message("assistant", "", tool_calls=(ToolCall(0, "c1", "f", "{}"),)))
    output = {"type": "function_call_output", "call_id": "c1", "output": "x"}
    last = Message("tool", "x", tool_call_id="c1")
    draft = _draft(Before(before), input=[output], instructions="be brief", previous_response_id="resp_x")
    assert draft.messages == (Message("system", "be brief"), *before, last)
    assert own_messages(_job(draft)) == (*before, last)
    assert _job(draft).kept() == _job(draft)
    assert _refused(input=[output]) == "input.0.call_id"


@pytest.mark.parametrize("instructions", [None, "be brief"])
def test_messages_of_an_earlier_response_are_not_kept_again(instructions: str | None) -> None:
    before = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    draft = _draft(Before(before, "g1.base", 2), input="d", instructions=instructions)
    job = _job(draft)
    head = (Message("system", "be brief"),) if instructions else ()
    assert job.messages == (*head, *before, Message("user", "d"))
    assert job.kept().messages == (*head, Message("user", "c"), Message("user", "d"))
    assert own_messages(job) == own_messages(job.kept()) == (Message("user", "c"), Message("user", "d"))
    assert job.kept().notes["base"] == "g1.base"
    assert job.kept().kept() is job.kept() or job.kept().kept() == job.kept()


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"tools": [{"type": "mcp"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "on_disconnect": "cancel"}, "on_disconnect"),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options.include_obfuscation"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": "x"}, "stop"),
    ],
)
def test_what_is_not_there_is_refused_by_name(data: dict[str, Any], param: str) -> None:
    assert _refused(**data) == param


def test_parameters_without_effect_are_accepted() -> None:
    draft = _draft(truncation="disabled", service_tier="auto", include=[], text={"format": {"type": "text"}})
    assert Sampling(**draft.sampling).named() == []
    assert _draft(include=["message.output_text.logprobs"]).sampling["logprobs"] == 0
    assert _draft(top_logprobs=2).sampling["logprobs"] == 2


def test_a_job_returns_the_request() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked: dict[str, Any] = {
        "instructions": "be brief",
        "max_output_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [TOOL | {"strict": True, "description": "d"}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": schema},
        "metadata": {"a": "b"},
        "user": "u",
        "background": True,
        "previous_response_id": "resp_x",
        "top_logprobs": 3,
        "truncation": "disabled",
    }
    seen = described(_job(_draft(**asked)))
    assert {name: seen[name] for name in asked} == asked
    assert seen["reasoning"] == {"effort": None, "summary": None}
    assert request_id_of(seen["id"]) == JOB_ID
    assert seen["created_at"] == 1795426036


def test_ids_of_responses() -> None:
    assert [request_id_of(name) for name in ("", "resp_", JOB_ID, f"resp_{JOB_ID}|", "resp_*")] == [None] * 5


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _frames(job: Job, tokens: list[Token], end: Terminal) -> list[bytes]:
    events = ResponseEvents(job)
    return events.opening() + events.all_of(tokens) + events.end(end)


def _names(job: Job, tokens: list[Token], end: Terminal) -> list[str]:
    return [str(one["type"]).removeprefix("response.") for one in told(b"".join(_frames(job, tokens, end)))]


def test_the_events_of_a_text() -> None:
    assert _names(_job(_draft()), ["a", "b"], done()) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]


def test_the_events_of_reasoning_and_a_call() -> None:
    call = RichToken(tool_calls=(ToolCall(0, "c1", "f", "{}"),))
    assert _names(_job(_draft()), [RichToken(reasoning="hm"), call], done("tool_calls")) == [
        *("created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]


def test_in_the_background_it_is_queued_until_there_is_something() -> None:
    job = _job(_draft(background=True))
    assert _names(job, ["a"], done())[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert _names(job, [], done("cancelled")) == ["created", "queued", "cancelled"]
    assert response_of(job, [], None, is_queued=True)["status"] == "queued"
    assert response_of(job, ["a"], None)["output"][0]["status"] == "in_progress"


def test_how_a_response_ends() -> None:
    job = _job(_draft())
    cut = response_of(job, ["a"], done("length", 1))
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    assert cut["usage"]["total_tokens"] == 4
    failed = response_of(job, ["a"], Failed.of(JOB_ID, 1, 1, BackendError("broken")))
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert failed["error"]["penstock"] == "backend_error"
    assert failed["usage"] is None


def test_log_probabilities_are_next_to_the_text() -> None:
    token = RichToken("a", logprobs=(Logprob("a", -0.5, (("a", -0.5), ("b", -1.0))),))
    (content,) = response_of(_job(_draft()), [token], done())["output"][0]["content"]
    assert content["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -1.0, "bytes": [98]},
            ],
        }
    ]


JOBS = st.sampled_from([_job(_draft()), _job(_draft(background=True, tools=[TOOL], instructions="x"))])


@given(JOBS, TOKENS, ENDS)
def test_the_events_tell_the_whole_response(job: Job, tokens: list[Token], end: Terminal) -> None:
    events = told(b"".join(_frames(job, tokens, end)))
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    items: dict[Any, dict[str, Any]] = {}
    texts: dict[Any, str] = {}
    for one in events:
        if one["type"] == "response.output_item.added":
            item = cast("dict[str, Any]", one["item"])
            assert item["id"] not in items
            assert one["output_index"] == len(items)
            items[item["id"]] = item
            texts[item["id"]] = ""
        elif str(one["type"]).endswith(".delta"):
            texts[one["item_id"]] += str(one["delta"])
    last = cast("dict[str, Any]", events[-1]["response"])
    assert last == response_of(job, tokens, end)
    assert events[-1]["type"] == f"response.{last['status']}"
    assert {item["id"]: _said(item) for item in last["output"]} == texts
    assert [item["id"] for item in last["output"]] == list(items)


def _said(item: dict[str, Any]) -> str:
    return str(item["arguments"]) if item["type"] == "function_call" else str(item["content"][0]["text"])


@given(JOBS, TOKENS, ENDS, st.data())
def test_any_number_is_followed_by_exactly_the_later_events(
    job: Job, tokens: list[Token], end: Terminal, data: Any
) -> None:
    """Whatever gateway tells it, in whatever pieces the tokens come to it, and whenever it looks."""
    frames = _frames(job, tokens, end)
    after = data.draw(st.integers(-1, len(frames)))
    stream = RelayStream(job, None, 0.0)
    answer = ResponsesApiResponse(_opened(stream), is_stream=True, after=after)
    sent = b""
    position = 0
    while position < len(tokens):
        if data.draw(st.booleans()):
            sent += answer.idle_news()
        size = data.draw(st.integers(1, 5))
        stream.accept(Tokens(JOB_ID, 1, position, tokens=tuple(tokens[position : position + size])), 1.0)
        position += size
        sent += answer.news()[0]
    stream.accept(end, 1.0)
    body, is_over = answer.news()
    assert is_over
    assert sent + body == b"".join(frames[after + 1 :])


def _opened(stream: RelayStream) -> Opened:
    """A reader of this stream at no gateway, for what asks none."""
    no = cast("Any", None)
    return Opened(cast(Gateway, no), Call(JOB_ID), [Reader(stream, Turn())], cast(Permit, no))


def test_a_gateway_that_goes_away_does_not_end_the_response() -> None:
    stream = RelayStream(_job(_draft()), None, 0.0)
    answer = ResponsesApiResponse(_opened(stream), is_stream=True)
    stream.accept(Tokens(JOB_ID, 1, 0, tokens=("a",)), 1.0)
    stream.fail(Draining("It goes away."), 2.0)
    events = told(answer.news()[0])
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "draining")
    assert events[-1]["sequence_number"] == events[-2]["sequence_number"]


@pytest.mark.parametrize(("is_stream", "end", "num"), [(False, None, 0), (True, None, 1), (False, done(), 1)])
def test_a_look_shows_the_output_of_what_has_ended_or_cannot_begin_again(
    is_stream: bool, end: Terminal | None, num: int
) -> None:
    job = msgspec.structs.replace(_job(_draft(background=True)), stream=is_stream)
    shown = present(job, ["a"], end, is_queued=False)
    assert len(shown["output"]) == num
    assert shown["status"] == ("in_progress" if end is None else "completed")
