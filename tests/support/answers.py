"""Answers for the properties of what is told of them: any tokens, any end."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.event import Done, Failed, FinishReason, Terminal, Usage
from penstock.rich_token import Logprob, RichToken, Token, ToolCall
from penstock.sse import Decoder

JOB_ID = "gabcdefghijk.01M83VPADE20A49QZ0BF9JCV43"

_TEXT = st.text(max_size=4)
_CALL = st.builds(
    ToolCall,
    index=st.integers(0, 2),
    id=st.sampled_from(["", "call_1"]),
    name=st.sampled_from(["", "f"]),
    arguments=st.sampled_from(["", "{}", '{"a"', ":1}", "}"]),
)
_LOGPROB = st.builds(Logprob, _TEXT, st.floats(-9, 0), st.just((("x", -1.0),)))
RICH_TOKENS = st.builds(
    RichToken,
    text=_TEXT,
    reasoning=_TEXT,
    tool_calls=st.lists(_CALL, max_size=2).map(tuple),
    logprobs=st.lists(_LOGPROB, max_size=1).map(tuple),
)
_MORE = st.sampled_from(["", "{}", '{"a":1}', ' {"b": [2]} ', "{"])


def _calling(parts: list[Token | str]) -> list[Token]:
    """Each part that is a call begins another one, numbered in their order."""
    tokens: list[Token] = []
    num = 0
    for part in parts:
        if isinstance(part, RichToken) and part.tool_calls:
            calls = tuple(replace(call, index=num, id=f"c{num}" if call.id else "") for call in part.tool_calls)
            part, num = replace(part, tool_calls=calls), num + 1
        tokens.append(part)
    return tokens


_CALLS = st.builds(ToolCall, id=st.sampled_from(["", "c"]), name=st.just("f"), arguments=_MORE)
# Of an engine that names each call, and numbers them from 0.
CALLING_TOKENS: st.SearchStrategy[list[Token]] = st.lists(
    _TEXT
    | st.builds(RichToken, text=_TEXT, reasoning=_TEXT)
    | _CALLS.map(lambda call: RichToken(tool_calls=(call,)))
    | st.builds(RichToken, logprobs=st.lists(_LOGPROB, max_size=1).map(tuple), text=_TEXT),
    max_size=8,
).map(_calling)
TOKENS: st.SearchStrategy[list[Token]] = st.lists(_TEXT | RICH_TOKENS, max_size=12)
REASONS: list[FinishReason] = ["stop", "length", "tool_calls", "content_filter", "cancelled"]


def done(reason: FinishReason = "stop", num: int = 0) -> Done:
    return Done(JOB_ID, 1, num, finish_reason=reason, usage=Usage(3, num))


ENDS: st.SearchStrategy[Terminal] = st.sampled_from(
    [*map(done, REASONS), Failed(JOB_ID, 1, 0, code="backend_error", message="broken")]
)


def told(frames: bytes) -> list[dict[str, object]]:
    """The data of the events in `frames`, each of which has the event's name as its type."""
    events = Decoder().feed(frames)
    data = [json.loads(event.data) for event in events]
    assert [one["type"] for one in data] == [event.event for event in events]
    return data
