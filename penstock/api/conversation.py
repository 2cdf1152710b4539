"""A conversation with images and tools, as chat completions and Penstock's own API take it: body to `Message`s. Pure.

The form is OpenAI's: https://platform.openai.com/docs/api-reference/chat. A `Job` holds tools, the choice of one and
the response format in it too, so the other APIs translate theirs into it. What a model cannot do is refused by its
capabilities.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    GenerationFields,
    Metadata,
    ReasoningEffort,
    Strict,
    check_tools,
    given,
)
from penstock.api.images import ImageLocation
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import ToolCall

MAX_PARTS = 100


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageURL(Strict):
    url: ImageLocation
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageURL


class RefusalPart(Strict):
    """Of an answer, given back: the model reads its text."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]


class FunctionCall(Strict):
    name: str = Field(min_length=1, max_length=200)
    arguments: str


class ToolCallBody(Strict):
    id: str = Field(min_length=1, max_length=200)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # some clients give back what they were streamed

    def tool_call(self, index: int) -> ToolCall:
        return ToolCall(index, self.id, self.function.name, self.function.arguments)


class AnsweredToolCall(Strict):
    """A call as `POST /v1/generate` answers it, given back."""

    id: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=200)
    arguments: str = ""
    index: int | None = None

    def tool_call(self, index: int) -> ToolCall:
        return ToolCall(index, self.id, self.name, self.arguments)


class MessageFields(Strict):
    """The null fields are those of an assistant's message as it was answered, given back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = Field(None, min_length=1, max_length=200)
    tool_call_id: str | None = Field(None, min_length=1, max_length=200)
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's and OpenRouter's name for the same
    refusal: str | None = Field(None, description="Of an answer, given back: the model reads it as its text.")
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ChatMessage(MessageFields):
    tool_calls: Annotated[list[ToolCallBody], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


AnyToolCall = ToolCallBody | AnsweredToolCall


class NativeMessage(MessageFields):
    """A turn of a conversation, in the form of chat completions. `tool_calls` may also be those of an answer."""

    tool_calls: Annotated[list[AnyToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class FunctionName(Strict):
    name: str = Field(min_length=1, max_length=200)


class FunctionSchema(FunctionName):
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionSchema


class ToolChoice(Strict):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(Strict):
    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ConversationFields(GenerationFields):
    """The fields of chat completions and of Penstock's own API."""

    logprobs: bool | None = Field(None, description="The log probability of each token of the answer.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="So many of the likeliest tokens at each place, too."
    )
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may ask for."
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    metadata: Metadata | None = Field(None, description="Your own notes; given back with the request.")

    def check(self) -> None:
        """Raises `InvalidRequest` for fields that contradict each other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        check_tools(self)
        chosen = self.response_format
        if chosen is not None and (chosen.json_schema is not None) != (chosen.type == "json_schema"):
            message = "'response_format.json_schema' is required by the type 'json_schema', and belongs to no other."
            raise InvalidRequest(message, param="response_format.json_schema")

    def sampling(self) -> dict[str, Any]:
        fields = super().sampling()
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        if self.tools:
            chosen = self.tool_choice
            fields["tools"] = tuple([{"type": tool.type, "function": given(tool.function)} for tool in self.tools])
            fields["tool_choice"] = chosen.model_dump() if isinstance(chosen, ToolChoice) else chosen
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        if self.response_format is not None and self.response_format.type != "text":
            fields["response_format"] = _format(self.response_format)
        fields["reasoning_effort"] = self.reasoning_effort
        return fields

    def names(self) -> dict[str, str]:
        """`Draft.names`."""
        return {"logprobs": "top_logprobs"} if self.top_logprobs else {}


def message_of(index: int, message: ChatMessage | NativeMessage) -> Message:
    """Message number `index` of a conversation. Raises `InvalidRequest` for fields that its role does not have."""

    def fault(name: str, problem: str) -> InvalidRequest:
        return InvalidRequest(f"'messages.{index}.{name}' {problem}.", param=f"messages.{index}.{name}")

    if message.tool_calls and message.role != "assistant":
        raise fault("tool_calls", "is allowed in an assistant's message only")
    if (message.tool_call_id is not None) != (message.role == "tool"):
        raise fault("tool_call_id", "is required in a tool's message, and allowed in no other")
    content = message.content
    if message.refusal and message.role != "assistant":
        raise fault("refusal", "is allowed in an assistant's message only")
    if content is None and message.role != "assistant":  # an answer may have been empty
        raise fault("content", "is required")
    parts: tuple[dict[str, Any], ...] = ()
    if isinstance(content, list):
        if any(isinstance(part, ImagePart) for part in content):
            if message.role != "user":
                raise fault("content", "may hold images in a user's message only")
            parts = tuple(map(_part, content))
        if message.role != "assistant" and any(isinstance(part, RefusalPart) for part in content):
            raise fault("content", "may hold a refusal in an assistant's message only")
        content = "\n".join([_text(part) for part in content if not isinstance(part, ImagePart)])
    if message.refusal:
        content = f"{content}\n{message.refusal}" if content else message.refusal
    return Message(
        role=message.role,
        content=content or "",
        parts=parts,
        tool_calls=tuple([call.tool_call(number) for number, call in enumerate(message.tool_calls or ())]),
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
        reasoning=(message.reasoning_content or message.reasoning or "") if message.role == "assistant" else "",
    )


def _format(format_: ResponseFormat) -> dict[str, Any]:
    if format_.json_schema is None:
        return {"type": format_.type}
    schema = {name.removesuffix("_"): value for name, value in given(format_.json_schema).items()}
    return {"type": format_.type, "json_schema": schema}


def _text(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": part.type, "image_url": given(part.image_url)}
    return {"type": "text", "text": _text(part)}
