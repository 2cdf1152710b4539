"""From an upstream's stream to tokens: chunks of /chat/completions and of /completions. Pure.

What servers send is wider than OpenAI's reference, and all of it is accepted: no `[DONE]`; usage in the last chunk
or in one of its own; `finish_reason` on an empty delta, or none but a `[DONE]`; reasoning as `reasoning_content`,
`reasoning` or parts of the content; tool calls in every form (see `calls`), also with `finish_reason: stop`; halves
of surrogate pairs (see `halves`); a whole answer in place of its chunks. What is not a chunk raises `UpstreamError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from penstock.backends.base import Finish
from penstock.backends.openai.calls import CallReader
from penstock.backends.openai.failures import cut, malformed, of_stream
from penstock.backends.openai.halves import Halves
from penstock.event import FinishReason, Usage
from penstock.rich_token import Logprob, RichToken, Token
from penstock.sse import ServerEvent

DONE = "[DONE]"
LEAST_LOGPROB = -9999.0  # OpenAI's and vLLM's for what is as good as impossible; JSON has no -Infinity

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

    __slots__ = ("_calls", "_halves", "_key", "_model", "_reason", "_usage", "is_over")

    def __init__(self, model: str = "", key: str = "", request_id: str = "") -> None:
        """`request_id`: for the ids of tool calls to which the engine gives none."""
        self._model = model
        self._key = key
        self._calls = CallReader(request_id)
        self._halves = Halves()
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
            return self._rest() if self._reason is None else None
        chunk = self._decoded(data)
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
            is_first, self._reason = self._reason is None, _REASONS.get(reason, "stop")
            return _joined(token, self._rest()) if is_first else token
        return token

    def feed_whole(self, data: str) -> Token | None:
        """A whole answer instead of a stream, as one token. Raises `UpstreamError`."""
        token = self.feed(ServerEvent("message", data))
        if self._reason is None:
            if token is None:
                raise malformed("a JSON object that is not an answer")
            self._reason = "stop"
            token = _joined(token, self._rest())
        return token

    def finish(self) -> Finish:
        """Call it when the stream has ended: its reason and usage. Raises `UpstreamError` if it was cut."""
        if self._reason is None and not self.is_over:
            raise cut("its stream ended without a finish_reason")
        reason = self._reason or "stop"
        # Some engines end with `stop` whatever the model did; clients run a tool only at `tool_calls`.
        return Finish("tool_calls" if reason == "stop" and self._calls.has_whole else reason, self._usage)

    def _decoded(self, data: str) -> Any:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            chunk = self._halves.decode(data)
        else:
            if self._halves:
                chunk = self._halves.mend(chunk)
        return chunk

    def _rest(self) -> Token | None:
        """The tool calls, text and reasoning still held back at the end of an answer, as one token; None for none."""
        calls = tuple(self._calls.finish(is_complete=self._reason in (None, "stop", "tool_calls")))
        text, reasoning = self._halves.rest()
        return RichToken(text, reasoning, calls) if calls or reasoning else text or None

    def _token(self, choice: Mapping[str, Any]) -> Token | None:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")
        if not isinstance(delta, dict):
            text = _text(choice, "text")
            logprobs = tuple(_logprobs(choice.get("logprobs")))
            return RichToken(text, logprobs=logprobs) if logprobs else text or None
        content = delta.get("content")
        thoughts = ""
        if isinstance(content, list):
            content, thoughts = _parts(content)
        text = (content if isinstance(content, str) else _text(delta, "content")) or _text(delta, "refusal")
        reasoning = _text(delta, "reasoning_content") or _text(delta, "reasoning") or thoughts
        parts = delta.get("tool_calls")
        if not parts and isinstance(delta.get("function_call"), dict):  # as before November 2023
            parts = [{"index": 0, "function": delta["function_call"]}]
        calls = tuple(self._calls.feed(parts)) if parts else ()
        logprobs = tuple(_logprobs(choice.get("logprobs")))
        if not (reasoning or calls or logprobs):
            return text or None
        return RichToken(text, reasoning, calls, logprobs)


def _joined(token: Token | None, rest: Token | None) -> Token | None:
    """One token of two."""
    if token is None or rest is None:
        return rest if token is None else token
    if isinstance(token, str) and isinstance(rest, str):
        return token + rest
    one, two = (RichToken(each) if isinstance(each, str) else each for each in (token, rest))
    return RichToken(
        one.text + two.text, one.reasoning + two.reasoning, one.tool_calls + two.tool_calls, one.logprobs + two.logprobs
    )


def _parts(content: list[Any]) -> tuple[str, str]:
    """Text and reasoning of a content in parts, as Mistral's reasoning models write it; other parts have neither."""
    text: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise malformed("a part of the content is not an object")
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            thoughts.append(_parts(inner)[0] if isinstance(inner, list) else _text(part, "thinking"))
        else:
            text.append(_text(part, "text"))
    return "".join(text), "".join(thoughts)


def _first_choice(choices: Any) -> Mapping[str, Any] | None:
    """One answer was asked for; any others are ignored."""
    if choices is None or choices == []:
        return None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise malformed("a chunk's choices are not a list of objects")
    return next((choice for choice in choices if choice.get("index", 0) in (0, None, "0")), None)


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
        top = top if isinstance(top, list) else []
        token, logprob = _named(entry)
        tops = tuple(_raw(each) for each in top)
        yield Logprob(
            token,
            logprob,
            tuple(_named(each) for each in top),
            _raw(entry),
            tops if any(one is not None for one in tops) else (),
        )


def _raw(entry: Any) -> bytes | None:
    """The engine's own bytes of a token, where its text does not have them: a part of a character has no text."""
    raw = entry.get("bytes") if isinstance(entry, dict) else None
    if not isinstance(raw, list) or not isinstance(entry.get("token"), str):
        return None
    try:
        data = bytes(raw)
    except (ValueError, TypeError):
        return None
    return None if data == entry["token"].encode() else data


def _named(entry: Any) -> tuple[str, float]:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str) or not _is_number(entry.get("logprob")):
        raise malformed("a log probability without token or value")
    try:
        logprob = float(entry["logprob"])
    except OverflowError:
        logprob = LEAST_LOGPROB
    return entry["token"], logprob if math.isfinite(logprob) else LEAST_LOGPROB


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
