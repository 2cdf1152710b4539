"""An answer as Ollama's lines, and whole: one JSON object for each token, a call at once, and one at the end. Pure.

Form: https://docs.ollama.com/api/streaming.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.api.answer_fields import failure_of
from penstock.api.parts import Part, Parts
from penstock.errors import BackendError, PenstockError
from penstock.event import Done, Terminal
from penstock.job import Job, created_at_of
from penstock.rich_token import Logprob, Token

_REASONS = {"length": "length"}  # all others are `stop`, with Ollama too


class Lines(Parts):
    """One answer, read from its first token. `is_chat`: with a message, and not a response."""

    def __init__(self, job: Job, *, is_chat: bool) -> None:
        super().__init__(job.id)
        self.is_chat = is_chat
        self._same = {"model": job.model, "created_at": stamp(created_at_of(job.id))}
        text = b'"message":{"role":"assistant","content":' if is_chat else b'"response":'
        self._head = b"%s,%s" % (msgspec.json.encode(self._same)[:-1], text)
        self._tail = b'},"done":false}\n' if is_chat else b',"done":false}\n'

    def opened(self, part: Part) -> list[bytes]:
        return []

    def grown(self, part: Part, text: str, logprobs: tuple[Logprob, ...]) -> list[bytes]:
        # Per token; the slow form is `self._line({"content": text})`, as for the other kinds of parts below.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if part.kind == "text":
            if not logprobs:
                return [b"%s%s%s" % (self._head, msgspec.json.encode(text), self._tail)]
            return [self._line({"content": text}, {"logprobs": [one.as_openai() for one in logprobs]})]
        return [self._line({"thinking": text})] if part.kind == "reasoning" else []

    def closed(self, part: Part, *, is_complete: bool) -> list[bytes]:
        call = _call(part)
        return [] if call is None else [self._line({"tool_calls": [self._numbered(call, part)]})]

    def keepalive(self) -> bytes:
        """A line that adds nothing."""
        return self._line({})

    def end(self, end: Terminal, times: Mapping[str, float | None]) -> list[bytes]:
        """The lines of the end. `times`: those of `timings`."""
        frames: list[bytes] = []
        if isinstance(end, Done) and end.finish_reason != "cancelled":
            frames += self.finish(is_complete=end.finish_reason in ("stop", "tool_calls"))
        error = self.failure(end)
        if error is not None:
            return [*frames, msgspec.json.encode({"error": error.message}) + b"\n"]
        assert isinstance(end, Done)  # a failure has an error
        return [*frames, self._line({}, _figures(end, times))]

    def failure(self, end: Terminal) -> PenstockError | None:
        """The error of `end` in this API: a tool's arguments must be an object, and no step checks it before."""
        error = failure_of(end)
        if error is not None:
            return error
        is_cut = isinstance(end, Done) and end.finish_reason == "length"
        if not is_cut and any(part.kind == "call" and part.arguments() is None for part in self.parts):
            return BackendError("The model called a tool with arguments that are not a JSON object.")
        return None

    def whole(self, end: Done, times: Mapping[str, float | None]) -> bytes:
        """The whole answer. A call that was cut off is left out."""
        self.finish(is_complete=end.finish_reason in ("stop", "tool_calls"))
        message: dict[str, Any] = {"content": self.text()}
        if thinking := "".join(part.text for part in self.parts if part.kind == "reasoning"):
            message["thinking"] = thinking
        calls = [self._numbered(call, part) for part in self.parts if (call := _call(part)) is not None]
        if calls:
            message["tool_calls"] = calls
        logprobs = [one.as_openai() for part in self.parts for one in part.logprobs]
        return self._line(message, ({"logprobs": logprobs} if logprobs else {}) | _figures(end, times))

    def _numbered(self, call: dict[str, Any], part: Part) -> dict[str, Any]:
        number = sum(other.kind == "call" for other in self.parts[: part.index])
        return {"id": part.call_id, "function": {"index": number, **call}}

    def _line(self, message: dict[str, Any], more: Mapping[str, Any] = {}) -> bytes:
        if self.is_chat:
            fields: dict[str, Any] = {"message": {"role": "assistant", "content": "", **message}}
        else:
            fields = {"response": message.pop("content", ""), **message}
        return msgspec.json.encode({**self._same, **fields, "done": False, **more}) + b"\n"


def lines_of(job: Job, tokens: Sequence[Token], *, is_chat: bool) -> Lines:
    """An answer of these tokens."""
    lines = Lines(job, is_chat=is_chat)
    lines.read(tokens)
    return lines


def loaded(model: str, at: float, *, is_chat: bool) -> bytes:
    """The answer to a request without a prompt, by which clients have a model loaded: it is."""
    answer = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    end = {"done": True, "done_reason": "load"}
    return msgspec.json.encode({"model": model, "created_at": stamp(at), **answer, **end}) + b"\n"


def stamp(at: float) -> str:
    """Seconds since 1970 as Ollama writes them."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def nanoseconds(ms: float | None) -> int:
    """0 for what did not happen."""
    return round((ms or 0) * 1e6)


def _figures(end: Done, times: Mapping[str, float | None]) -> dict[str, Any]:
    """Loading is the time until a worker began, the prompt's that until its first token."""
    queue, first, total = (nanoseconds(times[name]) for name in ("queue_ms", "ttft_ms", "total_ms"))
    return {
        "done": True,
        "done_reason": _REASONS.get(end.finish_reason, "stop"),
        "total_duration": total,
        "load_duration": queue,
        "prompt_eval_count": end.usage.prompt_tokens,
        "prompt_eval_duration": max(0, first - queue),
        "eval_count": end.usage.completion_tokens,
        "eval_duration": max(0, total - max(first, queue)),
    }


def _call(part: Part) -> dict[str, Any] | None:
    """None for another kind of part, and for a call that is not whole."""
    arguments = part.arguments() if part.kind == "call" else None
    if arguments is None or (part.is_cut and not part.texts):
        return None
    return {"name": part.name, "arguments": arguments}
