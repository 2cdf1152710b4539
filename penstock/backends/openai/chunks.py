"""From an upstream's stream to tokens: chunks of /chat/completions and of /completions. Pure.

What servers send is wider than OpenAI's reference, and all of it is accepted: no `[DONE]`; usage in the last chunk
or in one of its own; `finish_reason` on an empty delta, or none but a `[DONE]`; reasoning as `reasoning_content` or
`reasoning`; tool calls without an index, or whose arguments are an object. What is not a chunk raises `UpstreamError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from penstock.backends.base import Finish
from penstock.backends.openai.failures import cut, malformed, of_stream
from penstock.event import FinishReason, Usage
from penstock.rich_token import Logprob, RichToken, Token, ToolCall
from penstock.sse import ServerEvent

DONE = "[DONE]"
MAX_CALL_INDEX = 1023

# Other names for the same; TGI's and llama.cpp's among them. An unknown reason is still an end: `stop`.
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_BREAKS = ("abort", "error")  # the engine gave the request up

_decode = msgspec.json.Decoder().decode


class Chunks:
    """Feed it the events of one stream. `is_over`: no more events follow; `has_ended`: at most usage follows."""

    __slots__ = ("_key", "_model", "_num_calls", "_reason", "_usage", "is_over")

    def __init__(self, model: str = "", key: str = "") -> None:
        self._model = model
        self._key = key
        self._num_calls = 0
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self.is_over = False

    @property
    def has_ended(self) -> bool:
        return self._reason is not None

    def feed(self, event: ServerEvent) -> Token | None:
        """The token in this event, or None. Raises `UpstreamError`."""
        if self.is_over:
            return None
        data = event.data.strip()
        if data == DONE:
            self.is_over = True
            return None
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise malformed("a chunk is not JSON") from None
        if not isinstance(chunk, dict):
            raise malformed("a chunk is not an object")
        if event.event == "error" or chunk.get("error") or chunk.get("object") == "error":
            raise of_stream(chunk.get("error") or chunk, self._model, self._key)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = _usage(usage)
        choice = _first_choice(chunk.get("choices"))
        if choice is None:
            return None
        token = self._token(choice)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            if reason in _BREAKS:
                raise cut(f"finish_reason {reason}")
            self._reason = _REASONS.get(reason, "stop")
        return token

    def finish(self) -> Finish:
        """Call it when the stream has ended: its reason and usage. Raises `UpstreamError` if it was cut."""
        if self._reason is None and not self.is_over:
            raise cut("its stream ended without a finish_reason")
        return Finish(self._reason or ("tool_calls" if self._num_calls else "stop"), self._usage)

    def _token(self, choice: Mapping[str, Any]) -> Token | None:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            text = _text(choice, "text")
            logprobs = tuple(_logprobs(choice.get("logprobs")))
            return RichToken(text, logprobs=logprobs) if logprobs else text or None
        text = _text(delta, "content") or _text(delta, "refusal")
        reasoning = _text(delta, "reasoning_content") or _text(delta, "reasoning")
        calls = tuple(self._calls(delta.get("tool_calls")))
        logprobs = tuple(_logprobs(choice.get("logprobs")))
        if not (reasoning or calls or logprobs):
            return text or None
        return RichToken(text, reasoning, calls, logprobs)

    def _calls(self, parts: Any) -> Iterator[ToolCall]:
        for part in parts if isinstance(parts, list) else ():
            function = part.get("function") if isinstance(part, dict) else None
            if not isinstance(function, dict):
                raise malformed("a tool call without a function")
            call_id, name, arguments = _text(part, "id"), _text(function, "name"), function.get("arguments")
            if not isinstance(arguments, str):
                arguments = "" if arguments is None else msgspec.json.encode(arguments).decode()
            index = part.get("index")
            if type(index) is not int:  # then a part with an id or a name begins a call
                index = self._num_calls if call_id or name else max(0, self._num_calls - 1)
            if not 0 <= index <= MAX_CALL_INDEX:
                raise malformed("a tool call's index is out of range")
            self._num_calls = max(self._num_calls, index + 1)
            yield ToolCall(index, call_id, name, arguments)


def _first_choice(choices: Any) -> Mapping[str, Any] | None:
    """One answer was asked for; any others are ignored."""
    if choices is None or choices == []:
        return None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise malformed("a chunk's choices are not a list of objects")
    return next((choice for choice in choices if choice.get("index", 0) in (0, None)), None)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"{name} is not text")
    return value


def _usage(usage: Mapping[str, Any]) -> Usage | None:
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if type(prompt) is not int or type(completion) is not int or min(prompt, completion) < 0:
        return None  # counted here instead
    return Usage(prompt, completion)


def _logprobs(logprobs: Any) -> Iterator[Logprob]:
    """Of either route; llama.cpp gives those of /chat/completions on both."""
    if not isinstance(logprobs, dict):
        return
    content = logprobs.get("content")
    if not isinstance(content, list):
        yield from _side_by_side(logprobs)
        return
    for entry in content:
        top = entry.get("top_logprobs") if isinstance(entry, dict) else None
        named = [_named(entry), *(_named(each) for each in (top if isinstance(top, list) else ()))]
        yield Logprob(*named[0], tuple(named[1:]))


def _named(entry: Any) -> tuple[str, float]:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str) or not _is_number(entry.get("logprob")):
        raise malformed("a log probability without token or value")
    return entry["token"], float(entry["logprob"])


def _side_by_side(logprobs: Mapping[str, Any]) -> Iterator[Logprob]:
    """Lists of one length: `tokens`, `token_logprobs` (null where there is none), `top_logprobs` (objects, or null)."""
    tokens, values, tops = (logprobs.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not all(isinstance(each, list) for each in (tokens, values, tops)) or len(values) != len(tokens):
        raise malformed("log probabilities of unequal length")
    for number, (token, value) in enumerate(zip(tokens, values, strict=True)):
        if value is None:
            continue
        top = tops[number] if number < len(tops) else None
        pairs = [{"token": name, "logprob": at} for name, at in top.items()] if isinstance(top, dict) else []
        yield Logprob(*_named({"token": token, "logprob": value}), tuple(_named(pair) for pair in pairs))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
