"""`POST /v1/messages`: its body to a `Draft`. Pure.

Form: https://docs.anthropic.com/en/api/messages. What a model cannot do is refused by its capabilities. What the API
itself answers is taken back as it was given; its thinking goes to engines that ask for it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, PAUSE, RequestFields, Stop, Strict
from penstock.api.images import ImageLocation
from penstock.api.intake import Draft
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import ToolCall

MAX_BLOCKS = 100

# Fields of the API that no backend of ours honours, and the values of each that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": (),
    "speed": ("standard",),
    "thread": (),
}

BlockId = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    citations: None = None


class Base64Source(Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class URLSource(Strict):
    type: Literal["url"]
    url: ImageLocation


class ImageBlock(Strict):
    type: Literal["image"]
    source: Annotated[Base64Source | URLSource, Field(discriminator="type")]


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: BlockId
    name: Name
    input: dict[str, Any]
    caller: None = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: BlockId
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    is_error: bool | None = Field(None, description="The model reads `Error: ` before the content.")


class ThinkingBlock(Strict):
    """An answer's thinking, given back."""

    type: Literal["thinking"]
    thinking: str
    signature: str


Block = Annotated[TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")]


class MessageParam(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_BLOCKS, fail_fast=True)]


class CustomTool(Strict):
    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class MessagesToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesMetadata(Strict):
    user_id: str | None = Field(None, max_length=512)


class Thinking(Strict):
    """How much to think: a wish, which counts where the model has `reasoning_effort`."""

    type: Literal["adaptive", "enabled", "disabled"] | None = None
    budget_tokens: int | None = Field(None, ge=1)


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class MessagesBody(RequestFields):
    """A conversation to answer. Form: https://docs.anthropic.com/en/api/messages."""

    messages: list[Annotated[MessageParam, PAUSE]] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_tokens: int = Field(ge=1)
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1)
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = None
    metadata: MessagesMetadata | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


def draft_of(body: MessagesBody) -> Draft:
    """The request in `body`. Raises `InvalidRequest` for fields that contradict each other."""
    chosen = _choice(body)
    is_single = body.tools and body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    return Draft(
        model=body.model,
        messages=_messages(body),
        max_tokens=body.max_tokens,
        sampling={
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": tuple(body.stop_sequences or ()),
            "tools": tuple(_tool(tool) for tool in body.tools or ()),
            "tool_choice": chosen,
            "parallel_tool_calls": False if is_single else None,
            "response_format": _response_format(body.output_config),
        },
        hints={"reasoning_effort": _effort(body)},
        stream=bool(body.stream),
        timeout_s=body.timeout_s,
        on_disconnect=body.on_disconnect,
        user=(body.metadata and body.metadata.user_id) or "",
        names={
            "stop": "stop_sequences",
            "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
            "response_format": "output_config.format",
        },
    )


def _effort(body: MessagesBody) -> str | None:
    """The effort that is asked for by name, or else by the tokens that thinking may take."""
    if body.output_config is not None and body.output_config.effort is not None:
        return body.output_config.effort
    budget = body.thinking.budget_tokens if body.thinking is not None else None
    if budget is None:
        return None
    return "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"


def _response_format(config: OutputConfig | None) -> dict[str, Any] | None:
    """A `Sampling` has it in the form of OpenAI's chat completions."""
    if config is None or config.format is None:
        return None
    schema = {"name": "answer", "schema": config.format.schema_, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: CustomTool) -> dict[str, Any]:
    """A `Sampling` has its tools in the form of OpenAI's chat completions."""
    function = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    kept = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": kept | {"parameters": tool.input_schema}}


def _choice(body: MessagesBody) -> str | dict[str, Any] | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if not body.tools:
        if choice.type in ("auto", "none"):
            return None
        raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")
    if (choice.name is not None) != (choice.type == "tool"):
        raise InvalidRequest("'tool_choice.name' belongs to the type 'tool'.", param="tool_choice.name")
    if choice.name is not None:
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _messages(body: MessagesBody) -> tuple[Message, ...]:
    system = body.system if isinstance(body.system, str) else _text(body.system or [])
    messages = [Message("system", system)] if system else []
    called: set[str] = set()
    for index, message in enumerate(body.messages):
        if isinstance(message.content, str):
            messages.append(Message(message.role, message.content))
        elif message.role == "system" or not message.content:
            messages.append(_of_text(index, message.role, message.content))
        elif message.role == "assistant":
            messages.append(_assistant(index, message.content))
            called |= {call.id for call in messages[-1].tool_calls}
        else:
            messages += _user(index, message.content, called)
    if body.messages[-1].role == "assistant":
        raise InvalidRequest("The last message must be the user's: answers cannot be prefilled.", param="messages")
    return tuple(messages)


def _of_text(index: int, role: Literal["user", "assistant", "system"], blocks: list[Block]) -> Message:
    texts = []
    for number, block in enumerate(blocks):
        if not isinstance(block, TextBlock):
            raise _fault(index, number, "is of a type that a system message may not hold")
        texts.append(block)
    return Message(role, _text(texts))


def _assistant(index: int, blocks: list[Block]) -> Message:
    calls: list[ToolCall] = []
    texts: list[TextBlock] = []
    thoughts: list[str] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolUseBlock):
            calls.append(ToolCall(len(calls), block.id, block.name, json.dumps(block.input, ensure_ascii=False)))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, TextBlock):
            texts.append(block)
        else:
            raise _fault(index, number, "is of a type that only a user's message may hold")
    text = "".join([block.text for block in texts])  # as the model wrote it
    return Message("assistant", text, tool_calls=tuple(calls), reasoning="\n".join(filter(None, thoughts)))


def _user(index: int, blocks: list[Block], called: set[str]) -> list[Message]:
    """The results of tools come first, each a message of its own; then the user's text and images."""
    messages: list[Message] = []
    said: list[TextBlock | ImageBlock] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            if said:
                raise _fault(index, number, "is a tool's result and must come before the user's text")
            if block.tool_use_id not in called:
                raise _fault(index, number, "answers no tool use before it")
            content = block.content if isinstance(block.content, str) else _text(block.content or [])
            messages.append(
                Message("tool", f"Error: {content}" if block.is_error else content, tool_call_id=block.tool_use_id)
            )
        elif isinstance(block, TextBlock | ImageBlock):
            said.append(block)
        else:
            raise _fault(index, number, "is of a type that only an assistant's message may hold")
    if said:
        parts = tuple(map(_part, said)) if any(isinstance(block, ImageBlock) for block in said) else ()
        text = _text([block for block in said if isinstance(block, TextBlock)])
        messages.append(Message("user", text, parts=parts))
    return messages


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    """A `Message` has its parts in the form of OpenAI's chat completions."""
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, URLSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _text(blocks: list[TextBlock]) -> str:
    return "\n".join(block.text for block in blocks)


def _fault(index: int, number: int, problem: str) -> InvalidRequest:
    name = f"messages.{index}.content.{number}"
    return InvalidRequest(f"'{name}' {problem}.", param=name)
