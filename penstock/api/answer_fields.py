"""Parts of a stream that answers of several APIs show: usage, times, fields next to the text, its end. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.errors import Cancelled, PenstockError
from penstock.event import Done, Failed, Terminal
from penstock.gateway.relay import RelayStream
from penstock.rich_token import RichToken, Whole


def usage(end: Done) -> dict[str, int]:
    return {
        "prompt_tokens": end.usage.prompt_tokens,
        "completion_tokens": end.usage.completion_tokens,
        "total_tokens": end.usage.total_tokens,
    }


def timings(stream: RelayStream) -> dict[str, float | None]:
    """Milliseconds from the submission; None for what did not happen."""

    def since(at: float) -> float | None:
        return round((at - stream.submitted_at) * 1000, 3) if at else None

    return {
        "queue_ms": since(stream.started_at),
        "ttft_ms": since(stream.first_token_at),
        "total_ms": since(stream.ended_at),
    }


def extra_fields(text: Whole | RichToken) -> dict[str, Any]:
    """The fields next to the text that are not empty, by name: `{}` for plain text."""
    fields: dict[str, Any] = {"reasoning": text.reasoning, "tool_calls": text.tool_calls, "logprobs": text.logprobs}
    if isinstance(text, RichToken):
        fields["embedding"] = text.embedding
    return {name: value for name, value in fields.items() if value}


def error_data(error: PenstockError, request_id: str) -> bytes:
    return msgspec.json.encode({"request_id": request_id, **error.envelope()})


def failure_of(end: Terminal) -> PenstockError | None:
    """The error of a failed or a cancelled end; None for every other end."""
    if isinstance(end, Failed):
        return end.error()
    return Cancelled("The request was cancelled.") if end.finish_reason == "cancelled" else None
