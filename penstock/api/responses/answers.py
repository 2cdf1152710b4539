"""The answers of OpenAI's Responses as types, for the OpenAPI document: a response, and the events of its stream.

What is sent is encoded by hand in `body` and `events`; a test holds it to these. Knows no gateway.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import ReasoningEffort
from penstock.api.openai.answers import TokenLogprob
from penstock.http.openapi import OPTIONAL, AnswerModel, Events

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ResponseOutputText(AnswerModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class ResponseReasoningText(AnswerModel):
    type: Literal["reasoning_text"]
    text: str


class ResponseOutputMessage(AnswerModel):
    id: str
    status: ItemStatus
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[ResponseOutputText]


class ResponseReasoningItem(AnswerModel):
    id: str
    status: ItemStatus
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ResponseReasoningText]


class ResponseFunctionToolCall(AnswerModel):
    """`arguments` is the text of a JSON object, as the model wrote it."""

    id: str
    status: ItemStatus
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


ResponseOutputItem = Annotated[
    ResponseOutputMessage | ResponseReasoningItem | ResponseFunctionToolCall, Field(discriminator="type")
]


# ── the object ───────────────────────────────────────────────────────────────────────────────────────────────────


class ResponseError(AnswerModel):
    """OpenAI has few codes; `penstock` is our own."""

    code: str
    message: str
    param: str | None
    type: str
    penstock: str


class ResponseIncompleteDetails(AnswerModel):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseReasoning(AnswerModel):
    effort: ReasoningEffort | None
    summary: None


class ResponseTextFormat(AnswerModel):
    """Those of `json_schema` have the fields that were sent."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = OPTIONAL
    schema_: dict[str, Any] = Field({}, alias="schema")
    description: str = OPTIONAL
    strict: bool = OPTIONAL


class ResponseText(AnswerModel):
    format: ResponseTextFormat


class ResponseFunctionTool(AnswerModel):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class ResponseFunctionChoice(AnswerModel):
    type: Literal["function"]
    name: str


class InputTokensDetails(AnswerModel):
    """No backend reports its cache: both are 0."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(AnswerModel):
    """No backend reports it: 0."""

    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseAnswer(AnswerModel):
    """A response, in OpenAI's form."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    background: bool
    error: ResponseError | None
    incomplete_details: ResponseIncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ResponseOutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ResponseReasoning
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: ResponseText
    tool_choice: Literal["none", "auto", "required"] | ResponseFunctionChoice
    tools: list[ResponseFunctionTool]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


# ── events: the name of each is its `type`; `sequence_number` counts them from 0 ─────────────────────────────────


class ResponseStateEvent(AnswerModel):
    """The response has entered this state."""

    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.cancelled",
    ]
    sequence_number: int
    response: ResponseAnswer


class ResponseItemEvent(AnswerModel):
    """An item of the output has begun, or is complete."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: ResponseOutputItem


class ResponsePartEvent(AnswerModel):
    """A part of an item's content has begun, or is complete."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Annotated[ResponseOutputText | ResponseReasoningText, Field(discriminator="type")]


class ResponseTextDeltaEvent(AnswerModel):
    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class ResponseTextDoneEvent(AnswerModel):
    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ResponseReasoningDeltaEvent(AnswerModel):
    type: Literal["response.reasoning_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ResponseReasoningDoneEvent(AnswerModel):
    type: Literal["response.reasoning_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class ResponseArgumentsDeltaEvent(AnswerModel):
    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ResponseArgumentsDoneEvent(AnswerModel):
    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class ResponseErrorEvent(AnswerModel):
    """The gateway cannot continue the stream; the response itself may go on."""

    type: Literal["error"]
    sequence_number: int
    code: str
    message: str
    param: str | None


RESPONSE_EVENTS = Events(
    "ResponseEvent",
    (
        ResponseStateEvent,
        ResponseItemEvent,
        ResponsePartEvent,
        ResponseTextDeltaEvent,
        ResponseTextDoneEvent,
        ResponseReasoningDeltaEvent,
        ResponseReasoningDoneEvent,
        ResponseArgumentsDeltaEvent,
        ResponseArgumentsDoneEvent,
        ResponseErrorEvent,
    ),
    discriminator="type",
)
