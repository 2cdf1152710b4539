"""Answers for the properties of what is told of them: any tokens, any end."""

from __future__ import annotations

import json

from hypothesis import strategies as st

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
