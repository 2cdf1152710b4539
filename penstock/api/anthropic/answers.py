"""The answers of Anthropic's Messages as types, for the OpenAPI document: a message, and the events of its stream.

What is sent is encoded by hand in `events`; a test holds it to these. Knows no gateway.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.http.openapi import AnswerModel, ErrorDetail, Events

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class AnthropicErrorAnswer(AnswerModel):
    """Anthropic's envelope of every error, with our `code` and `param` in it. In a stream it is the last event."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


class MessageTextBlock(AnswerModel):
    type: Literal["text"]
    text: str


class MessageThinkingBlock(AnswerModel):
    """`signature` is empty: there is none to check."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class MessageToolUseBlock(AnswerModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


MessageBlock = Annotated[MessageTextBlock | MessageThinkingBlock | MessageToolUseBlock, Field(discriminator="type")]


class MessageUsage(AnswerModel):
    """No backend reports its cache: both of its numbers are 0."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class MessageAnswer(AnswerModel):
    """A message, in Anthropic's form. `stop_reason` is null in `message_start` only; which stop sequence it was is not
    known."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageBlock]
    stop_reason: StopReason | None
    stop_sequence: None
    usage: MessageUsage


# ── events: the name of each is its `type` ───────────────────────────────────────────────────────────────────────


class MessageStartEvent(AnswerModel):
    type: Literal["message_start"]
    message: MessageAnswer


class MessagePingEvent(AnswerModel):
    type: Literal["ping"]


class ContentBlockStartEvent(AnswerModel):
    type: Literal["content_block_start"]
    index: int
    content_block: MessageBlock


class TextDelta(AnswerModel):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(AnswerModel):
    type: Literal["thinking_delta"]
    thinking: str


class InputJsonDelta(AnswerModel):
    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDeltaEvent(AnswerModel):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | InputJsonDelta, Field(discriminator="type")]


class ContentBlockStopEvent(AnswerModel):
    type: Literal["content_block_stop"]
    index: int


class MessageDelta(AnswerModel):
    stop_reason: StopReason
    stop_sequence: None


class MessageDeltaEvent(AnswerModel):
    type: Literal["message_delta"]
    delta: MessageDelta
    usage: MessageUsage


class MessageStopEvent(AnswerModel):
    type: Literal["message_stop"]


MESSAGE_EVENTS = Events(
    "MessageEvent",
    (
        MessageStartEvent,
        MessagePingEvent,
        ContentBlockStartEvent,
        ContentBlockDeltaEvent,
        ContentBlockStopEvent,
        MessageDeltaEvent,
        MessageStopEvent,
        AnthropicErrorAnswer,
    ),
    discriminator="type",
)
