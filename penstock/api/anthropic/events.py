"""A message as it grows: tokens to Anthropic's events and to its content blocks. Pure.

Form: https://docs.anthropic.com/en/docs/build-with-claude/streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.api.answer_fields import failure_of
from penstock.api.anthropic.dialect import ANTHROPIC
from penstock.api.parts import Part, Parts
from penstock.errors import BackendError, PenstockError
from penstock.event import Done, Terminal
from penstock.job import Job
from penstock.rich_token import Logprob, Token
from penstock.sse import frame

PREFIX = "msg_"
PING = frame("ping", b'{"type":"ping"}')
_UNCACHED = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}  # no backend reports its cache
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessageEvents(Parts):
    """One message, read from its first token."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job
        self.is_open = False
        self._head = b""

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    def opening(self) -> list[bytes]:
        """The first events, once. The prompt's tokens are in the event of the end."""
        if self.is_open:
            return []
        self.is_open = True
        message = self._with([], None, {"input_tokens": 0, "output_tokens": 0} | _UNCACHED)
        return [_event("message_start", {"message": message}), PING]

    def token(self, token: Token) -> list[bytes]:
        return super().token(token) if self.is_open else self.opening() + super().token(token)

    def end(self, end: Terminal) -> list[bytes]:
        """The events of the end; an `error` for an end that is not an answer."""
        frames = self.opening()
        if isinstance(end, Done) and end.finish_reason != "cancelled":
            frames += self.finish(is_complete=end.finish_reason in ("stop", "tool_calls"))
        error = self.failure(end)
        if error is not None:
            return [*frames, frame("error", msgspec.json.encode(ANTHROPIC.envelope(error, self.request_id)))]
        assert isinstance(end, Done)  # a failure has an error
        delta = {"stop_reason": self._reason(end), "stop_sequence": None}
        return [*frames, _event("message_delta", {"delta": delta, "usage": _usage(end)}), _event("message_stop", {})]

    def failure(self, end: Terminal) -> PenstockError | None:
        """The error of `end` in this API: a tool's input must be an object, and no earlier step checks the model."""
        error = failure_of(end)
        if error is not None:
            return error
        if (
            isinstance(end, Done)
            and end.finish_reason != "length"
            and any(part.kind == "call" and part.arguments() is None for part in self.parts)
        ):
            return BackendError("The model called a tool with an input that is not a JSON object.")
        return None

    def opened(self, part: Part) -> list[bytes]:
        if part.kind == "text":
            block: dict[str, Any] = {"type": "text", "text": ""}
            self._head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % part.index
        elif part.kind == "reasoning":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            block = {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}
        return [_event("content_block_start", {"index": part.index, "content_block": block})]

    def grown(self, part: Part, text: str, logprobs: tuple[Logprob, ...]) -> list[bytes]:
        # Per token; the slow form is `_event("content_block_delta", …)`, as for the other kinds of parts below.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if part.kind == "text":
            return [b'%s"delta":{"type":"text_delta","text":%s}}\n\n' % (self._head, msgspec.json.encode(text))]
        if part.kind == "reasoning":
            delta = {"type": "thinking_delta", "thinking": text}
        else:
            delta = {"type": "input_json_delta", "partial_json": text}
        return [_event("content_block_delta", {"index": part.index, "delta": delta})]

    def closed(self, part: Part, *, is_complete: bool) -> list[bytes]:
        return [_event("content_block_stop", {"index": part.index})]

    # ── the object ───────────────────────────────────────────────────────────────────────────────────────────────

    def _reason(self, end: Done) -> str:
        """Which of the two a `stop` was is not recorded: with stop sequences it may have been one of them.

        `stop_sequence` stays null, which shows that it is not known. With a call it is `tool_use`: clients run a tool
        at nothing else.
        """
        if end.finish_reason == "stop" and any(part.kind == "call" for part in self.parts):
            return "tool_use"
        return _REASONS.get(end.finish_reason) or ("stop_sequence" if self.job.sampling.stop else "end_turn")

    def message(self, end: Done) -> dict[str, Any]:
        """The whole message. A call that was cut off is left out."""
        self.finish(is_complete=end.finish_reason in ("stop", "tool_calls"))
        blocks = [block for part in self.parts if (block := _block(part)) is not None]
        return self._with(blocks, self._reason(end), _usage(end))

    def _with(self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": PREFIX + self.request_id,
            "type": "message",
            "role": "assistant",
            "model": self.job.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }


def events_of(job: Job, tokens: Sequence[Token]) -> MessageEvents:
    """A message of these tokens."""
    events = MessageEvents(job)
    events.read(tokens)
    return events


def _event(name: str, data: dict[str, Any]) -> bytes:
    return frame(name, msgspec.json.encode({"type": name, **data}))


def _block(part: Part) -> dict[str, Any] | None:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    arguments = part.arguments()
    if arguments is None or (part.is_cut and not part.texts):
        return None
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments}


def _usage(end: Done) -> dict[str, int]:
    return {"input_tokens": end.usage.prompt_tokens, "output_tokens": end.usage.completion_tokens} | _UNCACHED
