"""`POST /v1/chat/completions`: its body to `Draft`s, tokens to its chunks and its whole answer. Pure.

Form: https://platform.openai.com/docs/api-reference/chat. What a model cannot do is refused by its capabilities.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from penstock.api.images import ImageLocation
from penstock.api.intake import Draft
from penstock.api.openai.fields import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    PAUSE,
    ChoiceFields,
    Metadata,
    Strict,
    choice_sampling,
    copies,
    given,
)
from penstock.api.openai.form import Form
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, Whole

MAX_MESSAGES = 1000
MAX_PARTS = 100

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": (),
    "functions": (),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageURL(Strict):
    url: ImageLocation
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class FunctionCall(Strict):
    name: str = Field(min_length=1, max_length=200)
    arguments: str


class ToolCallBody(Strict):
    id: str = Field(min_length=1, max_length=200)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # some clients give back what they were streamed


class ChatMessage(Strict):
    """The null fields are those of an assistant's message as it was answered, given back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = Field(None, min_length=1, max_length=200)
    tool_calls: Annotated[list[ToolCallBody], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, min_length=1, max_length=200)
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class FunctionSchema(Strict):
    name: str = Field(min_length=1, max_length=200)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionSchema


class FunctionName(Strict):
    name: str = Field(min_length=1, max_length=200)


class ToolChoice(Strict):
    type: Literal["function"]
    function: FunctionName


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatBody(ChoiceFields):
    """A conversation to answer. Form: https://platform.openai.com/docs/api-reference/chat/create."""

    messages: list[Annotated[ChatMessage, PAUSE]] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    metadata: Metadata | None = None


def drafts_of(body: ChatBody) -> list[Draft]:
    """`n` drafts of one request. Raises `InvalidRequest` for fields that contradict each other."""
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest("Give one of 'max_tokens' and 'max_completion_tokens'.", param="max_completion_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    for name in ("tool_choice", "parallel_tool_calls"):
        if getattr(body, name) is not None and not body.tools:
            raise InvalidRequest(f"'{name}' needs 'tools'.", param=name)
    chosen = body.tool_choice
    format_ = body.response_format
    sampling = choice_sampling(body) | {
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        "tools": tuple({"type": tool.type, "function": given(tool.function)} for tool in body.tools or ()),
        "tool_choice": chosen.model_dump() if isinstance(chosen, ToolChoice) else chosen,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": None if format_ is None or format_.type == "text" else given(format_),
        "reasoning_effort": body.reasoning_effort,
    }
    names = {"logprobs": "top_logprobs" if body.top_logprobs else "logprobs"}
    if body.max_completion_tokens:
        names["max_tokens"] = "max_completion_tokens"
    draft = Draft(
        model=body.model,
        messages=tuple(_message(index, message) for index, message in enumerate(body.messages)),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        sampling=sampling,
        stream=bool(body.stream),
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        metadata=body.metadata or {},
        user=body.user or "",
        names=names,
    )
    return copies(draft, body.n or 1)


def _message(index: int, message: ChatMessage) -> Message:
    def fault(name: str, problem: str) -> InvalidRequest:
        return InvalidRequest(f"'messages.{index}.{name}' {problem}.", param=f"messages.{index}.{name}")

    if message.tool_calls and message.role != "assistant":
        raise fault("tool_calls", "may stand in an assistant's message only")
    if (message.tool_call_id is not None) != (message.role == "tool"):
        raise fault("tool_call_id", "belongs to a tool's message, and to no other")
    content = message.content
    if content is None and not message.tool_calls:
        raise fault("content", "is required")
    parts: tuple[dict[str, Any], ...] = ()
    if isinstance(content, list):
        if any(isinstance(part, ImagePart) for part in content):
            if message.role != "user":
                raise fault("content", "may hold images in a user's message only")
            parts = tuple(map(_part, content))
        content = "\n".join(part.text for part in content if isinstance(part, TextPart))
    calls = enumerate(message.tool_calls or ())
    return Message(
        role=message.role,
        content=content or "",
        parts=parts,
        tool_calls=tuple(ToolCall(i, call.id, call.function.name, call.function.arguments) for i, call in calls),
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
    )


def _part(part: Part) -> dict[str, Any]:
    return given(part) if isinstance(part, TextPart) else {"type": part.type, "image_url": given(part.image_url)}


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────


class ChatForm(Form):
    """The chunks and the whole of one chat completion."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def open(self, index: int) -> list[bytes]:
        return [self.chunk({"index": index, "delta": {"role": "assistant", "content": ""}, **_NOTHING})]

    def token(self, index: int, token: Token) -> bytes:
        # Per token; the slow form is `self.chunk({"index": …, "delta": {"content": token}, **_NOTHING})`.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if isinstance(token, str):
            return b'%s{"index":%d,"delta":{"content":%s},"logprobs":null,"finish_reason":null}%s' % (
                self.head,
                index,
                msgspec.json.encode(token),
                self.tail,
            )
        logprobs = _logprobs(token.logprobs)
        return self.chunk({"index": index, "delta": _delta(token), "logprobs": logprobs, "finish_reason": None})

    def finish(self, index: int, reason: str) -> bytes:
        return self.chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})

    def choice(self, index: int, whole: Whole, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.reasoning:
            message["reasoning_content"] = whole.reasoning
        if whole.tool_calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [_tool_call(call) for call in whole.tool_calls]
        return {"index": index, "message": message, "logprobs": _logprobs(whole.logprobs), "finish_reason": reason}


_NOTHING = {"logprobs": None, "finish_reason": None}


def _delta(token: RichToken) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if token.text:
        delta["content"] = token.text
    if token.reasoning:
        delta["reasoning_content"] = token.reasoning
    if token.tool_calls:
        delta["tool_calls"] = [{"index": call.index, **_call_part(call)} for call in token.tool_calls]
    return delta


def _call_part(call: ToolCall) -> dict[str, Any]:
    """The first part of a call has its id, type and name; the others only more of its arguments."""
    function: dict[str, Any] = {"name": call.name} if call.name else {}
    function["arguments"] = call.arguments
    return ({"id": call.id, "type": "function"} if call.id else {}) | {"function": function}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(logprobs: tuple[Logprob, ...]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    content = [
        {**_logprob(one.token, one.logprob), "top_logprobs": [_logprob(*each) for each in one.top]} for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
