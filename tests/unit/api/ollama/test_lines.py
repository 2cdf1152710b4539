"""An answer as Ollama's lines, and whole."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.api.ollama.lines import Lines, lines_of
from penstock.event import Failed
from penstock.job import Job
from penstock.rich_token import Logprob, RichToken, Token, ToolCall
from tests.support.answers import CALLING_TOKENS, ENDS, JOB_ID, done

JOB = Job(id=JOB_ID, model="m", prompt="x")
TIMES = {"queue_ms": 1.0, "ttft_ms": 3.0, "total_ms": 10.5}
SAME = {"model": "m", "created_at": "2026-11-23T09:27:16Z"}


def _read(tokens: list[Token], end: Any, *, is_chat: bool = True) -> list[dict[str, Any]]:
    lines = Lines(JOB, is_chat=is_chat)
    return [json.loads(line) for line in b"".join(lines.all_of(tokens) + lines.end(end, TIMES)).splitlines()]


def test_the_lines_of_a_text() -> None:
    first, last = _read(["a"], done("length", 1))
    same = {name: first[name] for name in ("model", "created_at")}
    assert same["created_at"].startswith("2026-11-")
    assert first == same | {"message": {"role": "assistant", "content": "a"}, "done": False}
    assert last == same | {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 10_500_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 2_000_000,
        "eval_count": 1,
        "eval_duration": 7_500_000,
    }
    first, last = _read(["a"], done(), is_chat=False)
    assert (first["response"], last["response"], last["done_reason"]) == ("a", "", "stop")
    assert "message" not in first


def test_a_call_is_one_line_with_its_arguments_as_an_object() -> None:
    parts = [ToolCall(0, "c1", "f"), ToolCall(0, arguments='{"a"'), ToolCall(0, arguments=":1}"), ToolCall(1, "", "g")]
    tokens: list[Token] = [RichToken(reasoning="hm"), *(RichToken(tool_calls=(part,)) for part in parts)]
    thought, *calls, last = _read(tokens, done("tool_calls", 5))
    assert thought["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert [call["message"]["tool_calls"] for call in calls] == [
        [{"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}],
        [{"id": f"call_{JOB_ID}_1", "function": {"index": 1, "name": "g", "arguments": {}}}],
    ]
    assert last["done_reason"] == "stop"


def test_log_probabilities_are_next_to_the_text() -> None:
    token = RichToken("a", logprobs=(Logprob("a", -0.5, (("b", -1.0),)),))
    first, _ = _read([token], done())
    (one,) = first["logprobs"]
    assert (one["token"], one["logprob"], one["top_logprobs"][0]["token"]) == ("a", -0.5, "b")


def test_an_error_ends_the_lines() -> None:
    assert _read(["a"], Failed(JOB_ID, 1, 1, code="backend_error", message="broken"))[-1] == {"error": "broken"}
    assert _read(["a"], done("cancelled"))[-1] == {"error": "The request was cancelled."}
    call = RichToken(tool_calls=(ToolCall(0, "c", "f", "[1]"),))
    assert "not a JSON object" in _read([call], done("tool_calls"))[-1]["error"]


@given(CALLING_TOKENS, ENDS, st.booleans())
def test_the_lines_are_the_whole_answer(tokens: list[Token], end: Any, is_chat: bool) -> None:
    read = _read(tokens, end, is_chat=is_chat)
    assert [line.get("done") for line in read[:-1]] == [False] * (len(read) - 1)
    if "error" in read[-1]:
        return
    whole = json.loads(lines_of(JOB, tokens, is_chat=is_chat).whole(end, TIMES))
    said = [line["message"] if is_chat else line | {"content": line["response"]} for line in read]
    answer = whole["message"] if is_chat else whole | {"content": whole["response"]}
    assert "".join(part["content"] for part in said) == answer["content"]
    assert "".join(part.get("thinking", "") for part in said) == answer.get("thinking", "")
    calls = [call["function"] for part in said for call in part.get("tool_calls", ())]
    wanted = [call["function"] for call in answer.get("tool_calls", ())]
    assert sorted(map(repr, calls)) == sorted(map(repr, wanted))
    assert {name: whole[name] for name in whole if "duration" in name or "done" in name} == {
        name: read[-1][name] for name in read[-1] if "duration" in name or "done" in name
    }
