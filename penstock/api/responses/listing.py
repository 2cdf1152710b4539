"""Messages as the items that OpenAI's Responses lists of an input. Pure.

An item's id names the request and its place in the list, so that it is found again: `references.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.job import Message

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def listed(request_id: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The items of these messages, the oldest first."""
    items = (item for message in messages for item in _items_of(message))
    return [
        {"id": f"{_PREFIXES[item['type']]}_{request_id}_i{number}", "status": "completed", **item}
        for number, item in enumerate(items)
    ]


def _items_of(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
        return
    if message.content or message.parts or not message.tool_calls:
        yield {"type": "message", "role": message.role, "content": _content(message)}
    for call in message.tool_calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _content(message: Message) -> list[dict[str, Any]]:
    if message.role == "assistant":
        return [{"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}]
    if not message.parts:
        return [{"type": "input_text", "text": message.content}]
    return [_part(part) for part in message.parts]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto", "file_id": None}
