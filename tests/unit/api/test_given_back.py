"""What an API answers is taken back: an answer as the official packages read and dump it makes the right messages.

Whole and streamed, with and without the nulls of the package's own fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, cast

import anthropic
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel, TypeAdapter

from penstock.api.anthropic.events import MessageEvents
from penstock.api.native import NativeResponse
from penstock.api.ollama.lines import Lines
from penstock.api.openai.chat import ChatForm
from penstock.api.openai.choices import ChoicesResponse
from penstock.api.opened import Opened
from penstock.api.responses.events import ResponseEvents
from penstock.event import Done, FinishReason, Tokens
from penstock.gateway.admission import Permit
from penstock.gateway.gateway import Gateway
from penstock.gateway.relay import Reader, RelayStream, Turn
from penstock.http.edge import Call
from penstock.job import Job, Message, Sampling
from penstock.rich_token import Token, ToolCall, join, with_call_ids
from penstock.sse import Decoder
from tests.support.answers import CALLING_TOKENS, JOB_ID, done
from tests.support.drafts import drafts_of

REASONS: st.SearchStrategy[FinishReason] = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
Dump = Callable[[BaseModel], dict[str, Any]]
DUMPS: list[Dump] = [
    lambda model: model.model_dump(),
    lambda model: model.model_dump(exclude_none=True),
    lambda model: model.model_dump(exclude_unset=True),
    lambda model: cast("Any", model).to_dict(),
    lambda model: json.loads(model.model_dump_json()),
]
HI = {"role": "user", "content": "hi"}
TIMES = {"queue_ms": 1.0, "ttft_ms": 2.0, "total_ms": 3.0}

answers = given(CALLING_TOKENS, REASONS, st.sampled_from(DUMPS), st.booleans())


def _job(job_id: str = JOB_ID) -> Job:
    return Job(id=job_id, model="m", messages=(Message("user", "hi"),), sampling=Sampling())


def _opened(*answers: list[Token], reason: FinishReason = "stop") -> tuple[Opened, list[Done]]:
    """Readers of ended streams, at no gateway, for what asks none."""
    readers, ends = [], []
    for number, tokens in enumerate(answers):
        stream = RelayStream(_job(f"{JOB_ID}{number}"), None, 0.0)
        if tokens:
            stream.accept(Tokens(stream.job.id, 1, 0, tokens=tuple(tokens)), 1.0)
        end = Done(stream.job.id, 1, len(tokens), finish_reason=reason)
        stream.accept(end, 1.0)
        readers.append(Reader(stream, Turn()))
        ends.append(end)
    no = cast("Any", None)
    return Opened(cast(Gateway, no), Call(JOB_ID), readers, cast(Permit, no)), ends


def _expected(tokens: list[Token], job_id: str, **replaced: Any) -> Message:
    whole = with_call_ids(join(tokens), job_id)
    calls = tuple(ToolCall(index, call.id, call.name, call.arguments) for index, call in enumerate(whole.tool_calls))
    fields = {"content": whole.text, "tool_calls": calls, "reasoning": whole.reasoning} | replaced
    return Message("assistant", **fields)


def _events(frames: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in Decoder().feed(frames) if event.data != "[DONE]"]


# ── chat completions ─────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(CALLING_TOKENS, min_size=1, max_size=3), REASONS, st.sampled_from(DUMPS), st.booleans())
def test_a_message_of_a_chat(answers: list[list[Token]], reason: FinishReason, dump: Dump, is_stream: bool) -> None:
    opened, ends = _opened(*answers, reason=reason)
    form = ChatForm(JOB_ID, "m", 1, includes_usage=is_stream)
    response = ChoicesResponse(opened, form, is_stream=is_stream)
    if is_stream:
        state: Any = ChatCompletionStreamState()
        for chunk in _events(_streamed(response)):
            state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
        completion: Any = state.current_completion_snapshot
    else:
        completion = ChatCompletion.model_validate_json(response.whole(ends))
    for choice, tokens, reader in zip(completion.choices, answers, opened.readers, strict=True):
        (draft,) = drafts_of("chat", {"messages": [HI, dump(choice.message), HI]})
        assert (draft.messages or ())[1] == _expected(tokens, reader.stream.job.id)


def _streamed(response: ChoicesResponse) -> bytes:
    body, is_over = b"", False
    while not is_over:
        part, is_over = response.news()
        body += part
    return body


# ── Penstock's own API ───────────────────────────────────────────────────────────────────────────────────────────


@given(CALLING_TOKENS, REASONS)
def test_an_answer_of_our_own(tokens: list[Token], reason: FinishReason) -> None:
    opened, ends = _opened(tokens, reason=reason)
    answer = json.loads(NativeResponse(opened, is_stream=False).whole(ends))
    message = {"role": "assistant", "content": answer["text"]}
    message |= {name: answer[name] for name in ("reasoning", "tool_calls") if name in answer}
    (draft,) = drafts_of("native", {"messages": [HI, message, HI]})
    assert (draft.messages or ())[1] == _expected(tokens, opened.reader.stream.job.id)


# ── Anthropic's Messages ─────────────────────────────────────────────────────────────────────────────────────────


@answers
def test_the_content_of_a_message(tokens: list[Token], reason: FinishReason, dump: Dump, is_stream: bool) -> None:
    events, end = MessageEvents(_job()), done(reason, len(tokens))
    if is_stream:
        frames = events.opening() + events.all_of(tokens) + events.end(end)
        assume(events.failure(end) is None)
        message = _accumulated(_events(b"".join(frames)))
    else:
        events.read(tokens)
        assume(events.failure(end) is None)
        message = anthropic.types.Message.model_validate(events.message(end))
    content = [dump(block) for block in message.content]
    (draft,) = drafts_of("messages", {"max_tokens": 9, "messages": [HI, {"role": "assistant", "content": content}, HI]})
    given_back = (draft.messages or ())[1]
    expected = _expected(tokens, JOB_ID, reasoning="")
    assert given_back.content == expected.content
    if reason in ("stop", "tool_calls"):  # else the last call may be cut off
        assert _parsed(given_back) == _parsed(expected)


def _accumulated(events: Iterable[dict[str, Any]]) -> Any:
    kind: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    snapshot: Any = None
    json_bufs: dict[int, bytes] = {}
    for event in events:
        if event["type"] not in ("ping", "error"):
            checked = kind.validate_python(event)
            snapshot = accumulate_event(event=checked, current_snapshot=snapshot, json_bufs=json_bufs)
    return snapshot


def _parsed(message: Message) -> list[tuple[str, str, Any]]:
    return [(call.id, call.name, _json(call.arguments)) for call in message.tool_calls]


def _json(arguments: str) -> Any:
    try:
        return json.loads(arguments.strip() or "{}")
    except ValueError:
        return None


# ── OpenAI's Responses: tests/unit/api/responses/test_references.py has its other two ways ───────────────────────


@answers
def test_the_output_of_a_response(tokens: list[Token], reason: FinishReason, dump: Dump, is_stream: bool) -> None:
    events, end = ResponseEvents(_job()), done(reason, len(tokens))
    frames = events.opening() + events.all_of(tokens) + events.end(end)
    plain = events.response("completed", end)
    told = _events(b"".join(frames))
    response = Response.model_validate(told[-1]["response"] if is_stream else plain)
    output = [dump(item) for item in response.output]
    (draft,) = drafts_of("responses", {"input": [HI, *output, HI]})
    messages = (draft.messages or ())[1:-1]
    expected = _expected(tokens, JOB_ID, reasoning="")
    assert "".join(message.content for message in messages) == expected.content
    assert sorted(call.arguments for message in messages for call in message.tool_calls) == sorted(
        call.arguments for call in expected.tool_calls
    )
    assert {message.role for message in messages} <= {"assistant"}


# ── Ollama's chat ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keeps_ids", [True, False])
@given(CALLING_TOKENS, REASONS, st.booleans())
def test_a_message_of_ollamas_chat(keeps_ids: bool, tokens: list[Token], reason: FinishReason, is_stream: bool) -> None:
    """Its package for Python reads no id of a call."""
    lines, end = Lines(_job(), is_chat=True), done(reason, len(tokens))
    if is_stream:
        frames = b"".join(lines.all_of(tokens) + lines.end(end, TIMES))
        assume(lines.failure(end) is None)
        message = _folded([json.loads(line)["message"] for line in frames.splitlines()])
    else:
        lines.read(tokens)
        assume(lines.failure(end) is None)
        message = json.loads(lines.whole(end, TIMES))["message"]
    for call in () if keeps_ids else message.get("tool_calls", ()):
        del call["id"], call["function"]["index"]
    results = [
        {"role": "tool", "tool_name": call["function"]["name"], "content": "x"}
        for call in message.get("tool_calls", ())
    ]
    (draft,) = drafts_of("ollama", {"messages": [HI, message, *results, HI]})
    given_back, *others = (draft.messages or ())[1:-1]
    expected = _expected(tokens, JOB_ID)
    assert (given_back.content, given_back.reasoning) == (expected.content, expected.reasoning)
    assert [other.tool_call_id for other in others] == [call.id for call in given_back.tool_calls]
    if reason in ("stop", "tool_calls"):
        calls, wanted = ([repr(call[1:]) for call in _parsed(message)] for message in (given_back, expected))
        assert sorted(calls) == sorted(wanted)  # a call without arguments ends with the answer


def _folded(parts: list[dict[str, Any]]) -> dict[str, Any]:
    calls = [call for part in parts for call in part.get("tool_calls", ())]
    thinking = "".join(part.get("thinking", "") for part in parts)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(part["content"] for part in parts)}
    return message | ({"tool_calls": calls} if calls else {}) | ({"thinking": thinking} if thinking else {})
