"""Halves of surrogate pairs in an engine's chunks."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.openai.chunks import Chunks
from penstock.rich_token import Logprob, RichToken, ToolCall, join
from tests.unit.backends.openai.test_chunks import delta, read


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([r"hi \ud83c", r"\udf0d bye"], "hi \U0001f30d bye"),
        ([r"\ud83c", "", r"\udf0d"], "\U0001f30d"),
        ([r"hi \ud83c", " bye"], "hi \ufffd bye"),
        ([r"\udf0d bye"], "\ufffd bye"),
        ([r"hi \ud83c"], "hi \ufffd"),
        ([r"\ud83c\ud83c", r"\udf0d"], "\ufffd\U0001f30d"),
        ([r"\udf0d\ud83c", r"\udf0d\ud83c", r"\udf0d"], "\ufffd\U0001f30d\U0001f30d"),
    ],
)
@pytest.mark.parametrize("route", ["content", "reasoning", "text"])
def test_halves_are_joined_or_replaced(pieces: list[str], text: str, route: str) -> None:
    form = '{"choices":[{"index":0,"text":"%s"}]}' if route == "text" else (
        '{"choices":[{"index":0,"delta":{"' + route + '":"%s"}}]}')  # fmt: skip
    whole = join(read(*(form % piece for piece in pieces), delta("stop"))[0])
    assert (whole.reasoning if route == "reasoning" else whole.text) == text


def test_halves_in_arguments_are_joined() -> None:
    form = '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":%d,"id":"%s","function":%s}]}}]}'
    tokens, _ = read(
        form % (0, "a", r'{"name":"f","arguments":"{\"a\": \"\ud83c"}'),
        form % (1, "b", r'{"name":"g","arguments":"{}"}'),
        form % (0, "", r'{"arguments":"\udf0d\"}"}'),
        delta("tool_calls"),
    )
    assert join(tokens).tool_calls == (ToolCall(0, "a", "f", '{"a": "\U0001f30d"}'), ToolCall(1, "b", "g", "{}"))


def test_half_a_token_in_log_probabilities_has_its_bytes() -> None:
    chunk = r"""{"choices":[{"index":0,"delta":{"content":"x"},"logprobs":{"content":[
        {"token":"\ud83c","logprob":-1.5,"bytes":[240,159],"top_logprobs":[{"token":"a","logprob":-Infinity}]}]}}]}"""
    expected = Logprob("\ufffd", -1.5, (("a", -9999.0),), bytes((240, 159)))
    assert read(chunk, delta("stop"))[0] == [RichToken("x", logprobs=(expected,))]


@given(st.text(min_size=1, max_size=6), st.data())
def test_any_split_into_utf16_units_gives_the_same_text(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-16-be")
    units = [rf"\u{raw[at : at + 2].hex()}" for at in range(0, len(raw), 2)]
    cuts = sorted({0, len(units), *data.draw(st.lists(st.integers(0, len(units)), max_size=4))})
    pieces = ["".join(units[start:end]) for start, end in pairwise(cuts)]
    said = [json.dumps(delta(content="PIECE")).replace("PIECE", piece) for piece in pieces]
    assert join(read(*said, delta("stop"))[0]).text == text


def test_a_whole_answer_in_place_of_a_stream_is_one_token() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "tool_calls": [call]}
    chunks = Chunks("up")
    answer = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert chunks.feed_whole(json.dumps(answer)) == RichToken("Hi", "hm", (ToolCall(0, "c", "f", '{"a":1}'),))
    assert chunks.finish().reason == "tool_calls"
