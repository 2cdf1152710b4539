"""From the chunks of any server to tokens, and to an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.base import Finish
from penstock.backends.openai.chunks import Chunks
from penstock.backends.openai.failures import UpstreamError
from penstock.errors import InvalidRequest
from penstock.event import Usage
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, join
from penstock.sse import Decoder, ServerEvent

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def delta(reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": reason}]}


def read(*said: Any, chunks: Chunks | None = None) -> tuple[list[Token], Finish]:
    """The tokens and the end of a stream of these chunks; text is sent as it is."""
    chunks = chunks or Chunks("up")
    datas = (one if isinstance(one, str) else json.dumps(one) for one in said)
    tokens = [token for data in datas if (token := chunks.feed(ServerEvent("message", data))) is not None]
    return tokens, chunks.finish()


def failure_of(*said: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        read(*said)
    return caught.value


ENDINGS: list[tuple[list[Any], Usage | None]] = [
    ([delta("stop"), "[DONE]"], None),
    ([delta("stop")], None),
    (["[DONE]"], None),
    ([delta("stop") | {"usage": USAGE}, "[DONE]"], Usage(3, 2)),
    ([delta("stop") | {"usage": None}, {"choices": [], "usage": USAGE}, "[DONE]"], Usage(3, 2)),
    ([{"usage": USAGE}, delta("stop")], Usage(3, 2)),
    ([delta("stop") | {"usage": {"prompt_tokens": 3}}], None),
    ([delta("stop") | {"usage": {"prompt_tokens": -1, "completion_tokens": 2}}], None),
    ([delta("stop") | {"usage": {"prompt_tokens": 3, "completion_tokens": "x"}}], None),
    ([delta("eos_token"), " [DONE] "], None),
]


@pytest.mark.parametrize(("ending", "usage"), ENDINGS)
def test_every_way_to_end(ending: list[Any], usage: Usage | None) -> None:
    assert read(delta(role="assistant", content=""), delta(content="Hi"), *ending) == (["Hi"], Finish("stop", usage))


@pytest.mark.parametrize(
    ("reason", "means"), [("length", "length"), ("max_tokens", "length"), ("content_filter", "content_filter")]
)
def test_reasons_with_the_last_token(reason: str, means: Any) -> None:
    assert read(delta(reason, content="Hi")) == (["Hi"], Finish(means))


def test_an_end_without_a_reason_is_a_cut() -> None:
    assert failure_of(delta(content="Hi")).reason == "cut"
    assert failure_of().reason == "cut"
    assert failure_of(delta("abort")).reason == "cut"


def test_nothing_after_done_counts() -> None:
    assert read("[DONE]", "nonsense") == ([], Finish("stop"))


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_by_both_its_names(name: str) -> None:
    assert read(delta(**{name: "hm", "content": None}), delta("stop", content="Yes")) == (
        [RichToken(reasoning="hm"), "Yes"],
        Finish("stop"),
    )


def test_tool_calls_in_parts() -> None:
    tokens, finish = read(
        delta(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(
            tool_calls=[
                {"index": 0, "function": {"arguments": '{"x"'}},
                {"index": 0, "function": {"arguments": ": 1}"}},
            ]
        ),
        delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]),
        delta("tool_calls"),
    )
    assert join(tokens).tool_calls == (ToolCall(0, "a", "f", '{"x": 1}'), ToolCall(1, "b", "g", "{}"))
    assert finish.reason == "tool_calls"


def test_tool_calls_without_an_index_or_with_an_object() -> None:
    tokens, finish = read(
        delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]),
        delta(tool_calls=[{"id": "b", "function": {"name": "g", "arguments": "{"}}]),
        delta(tool_calls=[{"function": {"arguments": "}"}}]),
        "[DONE]",
    )
    assert join(tokens).tool_calls == (ToolCall(0, "a", "f", '{"x":1}'), ToolCall(1, "b", "g", "{}"))
    assert finish.reason == "tool_calls"


def test_logprobs_of_both_routes() -> None:
    top = [{"token": "Hi", "logprob": -0.5}, {"token": "Ho", "logprob": -2}]
    chat = delta("stop", content="Hi")
    chat["choices"][0]["logprobs"] = {
        "content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": top}]
    }
    expected = RichToken("Hi", logprobs=(Logprob("Hi", -0.5, (("Hi", -0.5), ("Ho", -2.0))),))
    assert read(chat)[0] == [expected]
    logprobs = {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Hi": -0.5, "Ho": -2}]}
    plain = {"choices": [{"index": 0, "text": "Hi", "logprobs": logprobs, "finish_reason": "stop"}]}
    assert read(plain)[0] == [expected]
    bare = {"tokens": ["<s>", "Hi"], "token_logprobs": [None, -0.5], "top_logprobs": None}
    assert read({"choices": [{"text": "Hi", "logprobs": bare, "finish_reason": "stop"}]})[0] == [
        RichToken("Hi", logprobs=(Logprob("Hi", -0.5),))
    ]


def test_answers_other_than_the_first_are_ignored() -> None:
    assert read(
        {"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]}, "[DONE]"
    )[0] == ["yes"]


@pytest.mark.parametrize(
    "said",
    [
        "{", "[]", "3", "null", {"choices": 3}, {"choices": ["x"]}, delta(content=3), delta(content=["x"]),
        delta(tool_calls=["x"]), delta(tool_calls=[{"index": 10**9, "function": {}}]), delta(tool_calls=[{"a": 1}]),
        {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [{"token": 3}]}}]},
        {"choices": [{"text": "x", "logprobs": {"tokens": ["x"], "token_logprobs": []}}]},
        '{"choices":' * 5000,
    ],
)  # fmt: skip
def test_an_invalid_chunk_is_malformed(said: Any) -> None:
    assert failure_of(said).reason == "malformed"


def test_errors_inside_a_stream() -> None:
    plain = failure_of({"error": {"message": "CUDA at 0xSECRET", "type": "x"}})
    assert plain.reason == "server_error"
    assert "SECRET" not in plain.error.message
    assert failure_of({"object": "error", "message": "x", "code": 503}).costs_try is False
    assert failure_of({"error": {"message": "slow down", "code": 429}}).reason == "rate_limited"
    invalid = failure_of({"error": {"message": "too long", "code": 400, "param": "messages"}})
    assert isinstance(invalid.error, InvalidRequest)
    assert (invalid.error.message, invalid.error.param, invalid.again) == ("too long", "messages", "never")
    with pytest.raises(UpstreamError):
        Chunks().feed(ServerEvent("error", '{"message": "x"}'))


names = st.sampled_from([
    "choices", "delta", "content", "text", "usage", "error", "finish_reason", "tool_calls", "function", "logprobs",
    "index", "id", "name", "arguments", "code", "message", "prompt_tokens", "completion_tokens", "reasoning", "token",
    "logprob", "tokens", "token_logprobs", "top_logprobs", "object",
])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(values.map(json.dumps), max_size=5) | st.tuples(st.text(max_size=30)))
def test_any_stream_is_tokens_or_an_error(said: Sequence[str]) -> None:
    try:
        tokens, finish = read(*said, chunks=Chunks("up", "key"))
    except UpstreamError:
        return
    assert all(isinstance(token, str | RichToken) and token for token in tokens)
    assert isinstance(finish, Finish)


@given(st.lists(st.text(min_size=1, max_size=8), max_size=6), st.data())
def test_any_split_of_the_bytes_gives_the_same_result(texts: list[str], data: st.DataObject) -> None:
    said = [*(delta(content=text) for text in texts), delta("stop"), {"choices": [], "usage": USAGE}]
    end = data.draw(st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"]))
    raw = f": hello{end}" + "".join(f"data: {json.dumps(one)}{end}" for one in said)
    whole = raw.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    decoder, chunks = Decoder(), Chunks()
    events = [
        event
        for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)
        for event in decoder.feed(whole[start:stop])
    ]
    assert [token for event in events if (token := chunks.feed(event)) is not None] == texts
    assert chunks.finish() == Finish("stop", Usage(3, 2))
