"""A response as it grows: tokens to its events and to its output. Pure.

Form: https://platform.openai.com/docs/api-reference/responses-streaming. Every event has a `sequence_number`, from 0.
The events are a function of the job, its tokens and its end, token by token: they are the same at every gateway,
whenever they are sent and however the tokens came together, so that a client can go on after any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.api.parts import Part, Parts
from penstock.api.responses.body import described, notes_of
from penstock.errors import ContextLengthExceeded, PenstockError
from penstock.event import Done, Terminal
from penstock.job import Job
from penstock.rich_token import Logprob, Token
from penstock.sse import frame

# Why an answer is not whole, by its finish reason.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}


class ResponseEvents(Parts):
    """One response, read from its first token. `num` is the number of the next event."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        notes = notes_of(job)
        self.is_background = notes is not None and notes.background
        self.num = 0
        self._described = described(job)
        self._has_begun = False
        self._head = b""

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    def opening(self) -> list[bytes]:
        """The first events, once.

        In the background it is `queued`; `in_progress` follows with its first token or its whole end.
        """
        if self.num:
            return []
        status = "queued" if self.is_background else "in_progress"
        frames = [self._told("response.created", status)]
        return [*frames, self._told("response.queued", "queued")] if self.is_background else frames + self._begin()

    def token(self, token: Token) -> list[bytes]:
        if self._has_begun:
            return super().token(token)
        return self.opening() + self._begin() + super().token(token)

    def end(self, end: Terminal) -> list[bytes]:
        """The events of the end."""
        frames = self.opening()
        status = _status(end)
        if status in ("completed", "incomplete"):
            frames += self._begin() + self.finish(is_complete=status == "completed")
        return [*frames, self._event(f"response.{status}", {"response": self.response(status, end)})]

    def broken(self, error: PenstockError, after: int = -1) -> bytes:
        """This gateway cannot continue the stream; the response itself may go on.

        It has the number of the last event that the client has, so that a client that continues after it misses none.
        """
        said = {"code": error.code, "message": error.message, "param": error.param}
        data = {"type": "error", "sequence_number": max(0, after, self.num - 1), **said}
        return frame("error", msgspec.json.encode(data))

    def opened(self, part: Part) -> list[bytes]:
        place = self._place(part)
        added = {"output_index": part.index, "item": self._item(part, "in_progress", is_new=True)}
        frames = [self._event("response.output_item.added", added)]
        if part.kind == "call":
            return frames
        if part.kind == "text":
            fixed = msgspec.json.encode({"type": "response.output_text.delta", **place})[:-1]
            self._head = b"event: response.output_text.delta\ndata: %s" % fixed
        return [*frames, self._event("response.content_part.added", place | {"part": _content(part, is_new=True)})]

    def grown(self, part: Part, text: str, logprobs: tuple[Logprob, ...]) -> list[bytes]:
        # Per token; the slow form is `self._event("response.output_text.delta", …)`, as for the other kinds below.
        # tests/unit/api/test_token_encoders.py holds the two equal.
        if part.kind == "text":
            number = self.num
            self.num += 1
            encode = msgspec.json.encode
            probs = encode([one.as_openai() for one in logprobs]) if logprobs else b"[]"
            return [
                b'%s,"sequence_number":%d,"delta":%s,"logprobs":%s}\n\n' % (self._head, number, encode(text), probs)
            ]
        name = "reasoning_text" if part.kind == "reasoning" else "function_call_arguments"
        return [self._event(f"response.{name}.delta", self._place(part) | {"delta": text})]

    def closed(self, part: Part, *, is_complete: bool) -> list[bytes]:
        place, text = self._place(part), part.text
        item = self._item(part, "completed" if is_complete else "incomplete")
        done = self._event  # in the order of the numbers
        if part.kind == "call":
            frames = [done("response.function_call_arguments.done", place | {"name": part.name, "arguments": text})]
        else:
            name = "output_text" if part.kind == "text" else "reasoning_text"
            logprobs = {"logprobs": [one.as_openai() for one in part.logprobs]} if part.kind == "text" else {}
            frames = [
                done(f"response.{name}.done", place | {"text": text} | logprobs),
                done("response.content_part.done", place | {"part": _content(part)}),
            ]
        return [*frames, done("response.output_item.done", {"output_index": part.index, "item": item})]

    def _begin(self) -> list[bytes]:
        if self._has_begun:
            return []
        self._has_begun = True
        return [self._told("response.in_progress", "in_progress")]

    def _told(self, name: str, status: str) -> bytes:
        return self._event(name, {"response": self._with(status, [])})

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        number = self.num
        self.num += 1
        return frame(name, msgspec.json.encode({"type": name, "sequence_number": number, **data}))

    def _place(self, part: Part) -> dict[str, Any]:
        place = {"item_id": self._id(part), "output_index": part.index}
        return place if part.kind == "call" else place | {"content_index": 0}

    # ── the object ───────────────────────────────────────────────────────────────────────────────────────────────

    def response(self, status: str, end: Terminal | None = None) -> dict[str, Any]:
        """The response as it is now: with the output so far, if `end` is None."""
        is_over = end is not None
        output = [self._item(part, _item_status(part, is_over=is_over)) for part in self.parts]
        return self._with(status, output, end)

    def _with(self, status: str, output: list[dict[str, Any]], end: Terminal | None = None) -> dict[str, Any]:
        is_done = isinstance(end, Done)
        reason = _INCOMPLETE.get(end.finish_reason) if isinstance(end, Done) else None
        return self._described | {
            "status": status,
            "error": None if end is None or is_done else _error(end),
            "incomplete_details": {"reason": reason} if reason else None,
            "output": output,
            "usage": _usage(end) if isinstance(end, Done) else None,
        }

    def _id(self, part: Part) -> str:
        return f"{_PREFIXES[part.kind]}_{self.request_id}_{part.index}"

    def _item(self, part: Part, status: str, *, is_new: bool = False) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._id(part), "status": status}
        content = [] if is_new else [_content(part)]
        if part.kind == "text":
            return item | {"type": "message", "role": "assistant", "content": content}
        if part.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        arguments = "" if is_new else part.text
        return item | {"type": "function_call", "call_id": part.call_id, "name": part.name, "arguments": arguments}


def num_events(job: Job, tokens: Sequence[Token], end: Terminal | None) -> int:
    """Number of events so far."""
    events = ResponseEvents(job)
    events.all_of(list(tokens))
    if end is not None:
        events.end(end)
    elif not tokens:
        events.opening()
    return events.num


def response_of(job: Job, tokens: Sequence[Token], end: Terminal | None, *, is_queued: bool = False) -> dict[str, Any]:
    """The whole response, as far as it has come."""
    events = ResponseEvents(job)
    events.read(tokens)
    if end is None:
        return events.response("queued" if is_queued and events.is_background else "in_progress")
    events.end(end)
    return events.response(_status(end), end)


def present(job: Job, tokens: Sequence[Token], end: Terminal | None, *, is_queued: bool) -> dict[str, Any]:
    """The response as a client that asks for its state sees it: until its end without its output.

    That may begin again: asking does not count as reading it. It is shown if the response was created as a stream.
    """
    return response_of(job, tokens if end is not None or job.stream else (), end, is_queued=is_queued)


def _item_status(part: Part, *, is_over: bool) -> str:
    if part.is_open and not is_over:
        return "in_progress"
    return "incomplete" if part.is_open or part.is_cut else "completed"


def _status(end: Terminal) -> str:
    if not isinstance(end, Done):
        return "failed"
    if end.finish_reason == "cancelled":
        return "cancelled"
    return "incomplete" if end.finish_reason in _INCOMPLETE else "completed"


def _content(part: Part, *, is_new: bool = False) -> dict[str, Any]:
    text = "" if is_new else part.text
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    logprobs = [] if is_new else [one.as_openai() for one in part.logprobs]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(end: Done) -> dict[str, Any]:
    """No backend reports what it had cached, nor which of its tokens were reasoning: both are 0."""
    return {
        "input_tokens": end.usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": end.usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": end.usage.total_tokens,
    }


def _error(end: Terminal) -> dict[str, Any] | None:
    """OpenAI has few codes; ours is in `penstock`."""
    if isinstance(end, Done):
        return None
    error = end.error()
    code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(error.status, "server_error")
    code = error.code if isinstance(error, ContextLengthExceeded) else code  # clients compact the conversation
    return {"code": code, "message": error.message, "param": error.param, "type": error.type, "penstock": error.code}
