"""The messages of Ollama's chat as `Message`s. Pure.

Ollama's clients know a call by its place: their results name its function, if anything. So calls without ids are given
some, and each result answers the first call of its name that has none yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from penstock.api.fields import MAX_TOOLS, Strict
from penstock.errors import InvalidRequest
from penstock.job import Message
from penstock.rich_token import ToolCall

MAX_IMAGES = 100
_KINDS = {"iVBOR": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}  # by their first bytes, in base64

Name = Annotated[str, Field(min_length=1, max_length=200)]


def _check(image: str) -> str:
    if not image.startswith(tuple(_KINDS)):
        raise ValueError("an image is a PNG, JPEG, GIF or WebP file in base64")
    return image


Images = Annotated[list[Annotated[str, AfterValidator(_check)]], Field(max_length=MAX_IMAGES, fail_fast=True)]


class CalledFunction(Strict):
    name: Name
    arguments: dict[str, Any]
    index: int | None = None


class OllamaToolCall(Strict):
    id: Name | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class OllamaTurn(Strict):
    """One turn; also an answer's message, given back."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images | None = None
    tool_calls: Annotated[list[OllamaToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_name: Name | None = Field(None, description="Of a tool's message: the function that was called.")
    tool_call_id: Name | None = Field(None, description="The same, by the call's id.")


# Fields that belong to a role.
_OWNERS = {
    "thinking": "assistant",
    "tool_calls": "assistant",
    "images": "user",
    "tool_name": "tool",
    "tool_call_id": "tool",
}


def messages_of(turns: Sequence[OllamaTurn]) -> tuple[Message, ...]:
    """Raises `InvalidRequest` for fields that a role does not have, and for a result without a call."""
    messages: list[Message] = []
    open_calls: list[ToolCall] = []
    for index, turn in enumerate(turns):
        _check_role(index, turn)
        content = turn.content or ""
        if turn.role == "user":
            messages.append(user_turn(content, turn.images or []))
        elif turn.role == "tool":
            call = _answered(index, turn, open_calls)
            open_calls.remove(call)
            messages.append(Message("tool", content, tool_call_id=call.id))
        else:
            calls = tuple(_call(index, number, call) for number, call in enumerate(turn.tool_calls or ()))
            open_calls += calls
            messages.append(Message(turn.role, content, tool_calls=calls, reasoning=turn.thinking or ""))
    return tuple(messages)


def user_turn(content: str, images: Sequence[str]) -> Message:
    """A `Message` has its parts in the form of OpenAI's chat completions."""
    if not images:
        return Message("user", content)
    shown = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in images]
    text = [{"type": "text", "text": content}] if content else []
    return Message("user", content, parts=(*text, *shown))


def _check_role(index: int, turn: OllamaTurn) -> None:
    for name, role in _OWNERS.items():
        if getattr(turn, name) and turn.role != role:
            article = "an" if role == "assistant" else "a"
            raise _fault(index, name, f"is allowed in {article} {role}'s message only")


def _call(index: int, number: int, call: OllamaToolCall) -> ToolCall:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return ToolCall(number, call.id or f"call_{index}_{number}", call.function.name, arguments)


def _answered(index: int, turn: OllamaTurn, open_calls: Sequence[ToolCall]) -> ToolCall:
    for call in open_calls:
        if turn.tool_call_id in (None, call.id) and turn.tool_name in (None, call.name):
            return call
    name = "tool_call_id" if turn.tool_call_id else "tool_name" if turn.tool_name else "role"
    raise _fault(index, name, "is a result without a call before it")


def _url(image: str) -> str:
    kind = next(kind for start, kind in _KINDS.items() if image.startswith(start))
    return f"data:image/{kind};base64,{image}"


def _fault(index: int, name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"'messages.{index}.{name}' {problem}.", param=f"messages.{index}.{name}")
