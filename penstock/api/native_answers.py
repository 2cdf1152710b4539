"""The answers of Penstock's own API as types, for the OpenAPI document: whole ones, events, and the request object.

What is sent is encoded by hand in `native` and `requests`; a test holds it to these. Knows no gateway.
"""

from __future__ import annotations

from typing import Literal

from penstock.event import FinishReason
from penstock.http.openapi import OPTIONAL, AnswerModel, ErrorDetail, Events

AnswerReason = Literal["stop", "length", "tool_calls", "content_filter"]  # one that was cancelled is an error
RequestState = Literal["queued", "running", "completed", "failed", "cancelled"]


class UsageAnswer(AnswerModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TimingsAnswer(AnswerModel):
    """Milliseconds since the gateway submitted the request; null for what did not happen."""

    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float | None


class ToolCallAnswer(AnswerModel):
    """`arguments` is the text of a JSON object, as the model wrote it; absent where it is empty, as `index` is where it
    is 0."""

    index: int = OPTIONAL
    id: str
    name: str
    arguments: str = OPTIONAL


class ToolCallPart(AnswerModel):
    """A part of a call: those of one `index` are joined. The first one has `id` and `name`."""

    index: int = OPTIONAL
    id: str = OPTIONAL
    name: str = OPTIONAL
    arguments: str = OPTIONAL


class LogprobAnswer(AnswerModel):
    """`top`: the likeliest tokens at this place, each with its log probability; absent where none were asked for.

    `raw`: the token's bytes in base64, where its text does not have them, such as half of a character; `top_raw`: the
    same for each of `top`.
    """

    token: str
    logprob: float
    top: list[tuple[str, float]] = OPTIONAL
    raw: str = OPTIONAL
    top_raw: list[str | None] = OPTIONAL


class TextAnswer(AnswerModel):
    """The parts of an answer other than its text; absent if the model returned none."""

    reasoning: str = OPTIONAL
    tool_calls: list[ToolCallAnswer] = OPTIONAL
    logprobs: list[LogprobAnswer] = OPTIONAL


class GenerateAnswer(TextAnswer):
    """A whole answer."""

    request_id: str
    model: str
    text: str
    finish_reason: AnswerReason
    usage: UsageAnswer
    timings: TimingsAnswer


class AcceptedAnswer(AnswerModel):
    """A request that runs in the background."""

    request_id: str
    state: Literal["queued"]
    model: str


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────


class QueuedEvent(AnswerModel):
    """`event: queued`: the request waits. Position 1 is next; the estimate is null until a drain rate is known."""

    request_id: str
    position: int
    estimated_wait_s: float | None


class TokenEvent(AnswerModel):
    """`event: token`. `index` counts from 0 without gaps. The fields next to `text` are of this token alone.

    `embedding`: of a request to `/v1/embeddings`: one input's vector, float32, little-endian, in base64.
    """

    request_id: str
    index: int
    text: str
    reasoning: str = OPTIONAL
    tool_calls: list[ToolCallPart] = OPTIONAL
    logprobs: list[LogprobAnswer] = OPTIONAL
    embedding: str = OPTIONAL


class DoneEvent(AnswerModel):
    """`event: done`: the end of a request that was answered, or cancelled."""

    request_id: str
    model: str
    finish_reason: FinishReason
    usage: UsageAnswer
    timings: TimingsAnswer


class ErrorEvent(AnswerModel):
    """`event: error`: the end of a request that failed."""

    request_id: str
    error: ErrorDetail


_EXAMPLE = """id: g….01K…/1795424410123-1
event: token
data: {"request_id":"g….01K…","index":0,"text":"Hi"}

id: g….01K…/1795424410123-1
event: done
data: {"request_id":"g….01K…","model":"mock","finish_reason":"length","usage":{…},"timings":{…}}
"""
GENERATE_EVENTS = Events("GenerateEvent", (QueuedEvent, TokenEvent, DoneEvent, ErrorEvent), example=_EXAMPLE)


# ── the request object ───────────────────────────────────────────────────────────────────────────────────────────


class RequestAnswer(TextAnswer):
    """The request object. Instants are seconds since 1970 on the store's clock."""

    request_id: str
    model: str
    state: RequestState
    created_at: float
    deadline_at: float
    attempts: int
    position: int | None
    estimated_wait_s: float | None
    timings: TimingsAnswer
    usage: UsageAnswer | None
    finish_reason: FinishReason | None
    text: str | None
    error: ErrorDetail | None
    metadata: dict[str, str]
    user: str | None


class RequestList(AnswerModel):
    """Requests, the newest first, without their texts."""

    data: list[RequestAnswer]
