"""The conversation of `POST /v1/messages`: its blocks, and how they become the messages of a `Job`. Pure.

A tool's message has text only in the APIs of engines, so images of a tool's result are in a user's message behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import Strict
from penstock.api.images import ImageLocation
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import ToolCall

MAX_BLOCKS = 100

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


ResultBlock = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: BlockId
    content: str | Annotated[list[ResultBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    is_error: bool | None = Field(None, description="The model reads `Error: ` before the content.")


class ThinkingBlock(Strict):
    """An answer's thinking, given back."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(Strict):
    """Thinking that only Anthropic can read, from a conversation that began there. It is dropped."""

    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
    Field(discriminator="type"),
]


class MessageParam(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_BLOCKS, fail_fast=True)]


def messages_of(system: str | Sequence[TextBlock] | None, turns: Sequence[MessageParam]) -> tuple[Message, ...]:
    """Raises `InvalidRequest` for blocks that a role does not have, and for a result without a call.

    If the last one is the assistant's, the answer continues its text, which is not empty.
    """
    said = system if isinstance(system, str) else text_of(system or [])
    messages = [Message("system", said)] if said else []
    called: dict[str, str] = {}
    for index, turn in enumerate(turns):
        if isinstance(turn.content, str):
            messages.append(Message(turn.role, turn.content))
        elif turn.role == "system" or not turn.content:
            messages.append(_of_text(index, turn.role, turn.content))
        elif turn.role == "assistant":
            messages.append(_assistant(index, turn.content))
            called |= {call.id: call.name for call in messages[-1].tool_calls}
        else:
            messages += _user(index, turn.content, called)
    _check_last(messages, len(turns))
    return tuple(messages)


def _check_last(messages: list[Message], num_turns: int) -> None:
    """An answer of which nothing is begun is not there."""
    last = messages[-1]
    if last.role != "assistant":
        return
    if last.tool_calls:
        raise InvalidRequest("The last message must have the results of the tool calls before it.", param="messages")
    if not last.content:
        if num_turns == 1:
            raise InvalidRequest("There must be a message of the user.", param="messages")
        messages.pop()


def _of_text(index: int, role: Literal["user", "assistant", "system"], blocks: Sequence[Block]) -> Message:
    texts = []
    for number, block in enumerate(blocks):
        if not isinstance(block, TextBlock):
            raise _fault(index, number, "is of a type that a system message may not hold")
        texts.append(block)
    return Message(role, text_of(texts))


def _assistant(index: int, blocks: Sequence[Block]) -> Message:
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
        elif not isinstance(block, RedactedThinkingBlock):
            raise _fault(index, number, "is of a type that only a user's message may hold")
    text = "".join([block.text for block in texts])  # as the model wrote it
    return Message("assistant", text, tool_calls=tuple(calls), reasoning="\n".join(filter(None, thoughts)))


def _user(index: int, blocks: Sequence[Block], called: Mapping[str, str]) -> list[Message]:
    """The results of tools come first, each a message of its own; then their images, and the user's text and images.

    `called`: the names of the tools that were called, by the ids of the calls.
    """
    messages: list[Message] = []
    shown: list[TextBlock | ImageBlock] = []
    said: list[TextBlock | ImageBlock] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock):
            if said:
                raise _fault(index, number, "is a tool's result and must come before the user's text")
            if block.tool_use_id not in called:
                raise _fault(index, number, "answers no tool use before it")
            messages.append(_result(block))
            shown += _images_of(block, called[block.tool_use_id])
        elif isinstance(block, TextBlock | ImageBlock):
            said.append(block)
        else:
            raise _fault(index, number, "is of a type that only an assistant's message may hold")
    if blocks := [*shown, *said]:
        parts = tuple(map(_part, blocks)) if any(isinstance(block, ImageBlock) for block in blocks) else ()
        messages.append(Message("user", text_of(blocks), parts=parts))
    return messages


def _result(block: ToolResultBlock) -> Message:
    content = block.content if isinstance(block.content, str) else text_of(block.content or [])
    return Message("tool", f"Error: {content}" if block.is_error else content, tool_call_id=block.tool_use_id)


def _images_of(block: ToolResultBlock, name: str) -> list[TextBlock | ImageBlock]:
    """The images of a result, behind a line with the name of the tool."""
    images = [each for each in block.content or () if isinstance(each, ImageBlock)]
    return [TextBlock(type="text", text=f"From the result of {name}:"), *images] if images else []


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    """A `Message` has its parts in the form of OpenAI's chat completions."""
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, URLSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def text_of(blocks: Sequence[TextBlock | ImageBlock]) -> str:
    return "\n".join([block.text for block in blocks if isinstance(block, TextBlock)])


def _fault(index: int, number: int, problem: str) -> InvalidRequest:
    name = f"messages.{index}.content.{number}"
    return InvalidRequest(f"'{name}' {problem}.", param=name)
