"""Answers, read cheaply and checked: is it whole, in order, its own, and as long as was asked.

One scanner a connection, reset for each answer. Bytes in, number of new tokens out. The usual chunk of a stream (token
events and nothing else) is judged with a few searches over all of it; only what differs is taken apart.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from penstock.loadgen.plan import API

MAX_WAITING_BYTES = 4 * 1024 * 1024

_INDEX = re.compile(rb'"index":\s*(\d+)')
_DELTA = re.compile(rb'"(?:reasoning_)?content":\s*"(?!")')
_TEXT = re.compile(rb'"text":\s*"(?!")')
_EXPECTED: list[bytes] = []

_decode = msgspec.json.Decoder().decode


def expected(first: int, num: int) -> list[bytes]:
    """The indices from `first`, as they are in JSON."""
    while len(_EXPECTED) < first + num:
        _EXPECTED.extend(str(index).encode() for index in range(len(_EXPECTED), len(_EXPECTED) + 1024))
    return _EXPECTED[first : first + num]


class Scanner:
    """One answer. After its last byte `finish` judges it: `error` is set for an error that the server
    reported, `wrong` for an invalid answer; both are kinds, for counting.
    """

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num = 0  # tokens seen, or the number in `usage` where that is more
        self.rest = b""
        self.is_over = False
        self.error = ""
        self.wrong = ""
        self.reason = ""
        self.usage: int | None = None
        self.request_id = b""

    def feed(self, data: bytes) -> int:
        """Bytes of the body of a stream; the number of tokens in the events that they complete."""
        if self.rest:
            data = self.rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end == len(data) > 1:
            self.rest = b""
        else:
            if end == 1:
                self.rest = data
                if len(data) > MAX_WAITING_BYTES:
                    self.mark_wrong("an event without end")
                return 0
            self.rest = data[end:]
            data = data[:end]
        return self.events(data)

    def events(self, data: bytes) -> int:
        raise NotImplementedError

    def whole(self, body: bytes) -> int:
        """The body of a whole answer; the number of its tokens."""
        try:
            data = _decode(body)
            text = self.text_of(data)
        except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
            self.mark_wrong("no answer")
            return 0
        if not isinstance(text, str):
            self.mark_wrong("no answer")
        self.is_over = True
        self.read_usage(data)
        self.num = self.usage or 0
        return self.num

    def text_of(self, data: Any) -> Any:
        raise NotImplementedError

    def mark_wrong(self, what: str) -> None:
        self.wrong = self.wrong or what

    def read_usage(self, data: Any) -> None:
        usage = data.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.usage = usage["completion_tokens"]

    def finish(self) -> None:
        """The answer has ended; judge it."""
        if self.error or self.wrong:
            return
        if self.rest:
            self.mark_wrong("bytes after the last event")
        elif not self.is_over:
            self.mark_wrong("no end")
        elif (self.reason == "length" and self.num != self.max_tokens) or self.num > self.max_tokens:
            self.mark_wrong("number of tokens")

    def reported(self, data: Any) -> None:
        """An error that the server sent inside a stream."""
        error = data.get("error") if isinstance(data, dict) else None
        code = (error.get("code") or error.get("type") or "?") if isinstance(error, dict) else "?"
        self.error = f"event {code}"
        self.is_over = True


class GenerateScanner(Scanner):
    """`POST /v1/generate`: `token` events with an index, then `done` or `error`."""

    def events(self, data: bytes) -> int:
        found = _INDEX.findall(data)
        num, num_events = len(found), data.count(b"data:")
        if self.is_over:
            self.mark_wrong("an event after the end")
        if num_events != num:
            found = self._tail(data, found, num_events)
            num = len(found)
        if found != expected(self.num, num):
            self.mark_wrong("order of tokens")
        if self.request_id and data.count(b'"request_id":"' + self.request_id) != num_events and self._is_mixed(data):
            self.mark_wrong("another request's token")
        self.num += num
        return num

    def _is_mixed(self, data: bytes) -> bool:
        """Whether an event names another request."""
        num_named = data.count(b'"request_id"')
        if num_named == data.count(b'"request_id":"' + self.request_id):
            return False
        return num_named != data.count(b'"request_id": "' + self.request_id)

    def _tail(self, data: bytes, found: list[bytes], num_events: int) -> list[bytes]:
        """The same of a chunk that is not tokens only; `found` are all its indices. Nearly always its last event
        is the end, and all others are tokens.
        """
        at = data.rfind(b"\n\n", 0, -2) + 2
        last = data[at:] if at > 1 else data
        if num_events == len(found) + 1 and not _INDEX.search(last) and last.count(b"data:") == 1:
            return found + self._apart(last)
        return self._apart(data)

    def _apart(self, data: bytes) -> list[bytes]:
        """The indices of the token events among others, which are dealt with."""
        found: list[bytes] = []
        for event in data.split(b"\n\n"):
            at = event.find(b"data:")
            if at < 0:
                continue  # a comment, which keeps the connection alive
            if b"event: token" in event[:at]:
                if self.is_over:
                    self.mark_wrong("an event after the end")
                found += _INDEX.findall(event)
            elif b"event: done" in event[:at] or b"event: error" in event[:at]:
                self._end(event[:at], event[at + 5 :])
        return found

    def _end(self, head: bytes, data: bytes) -> None:
        if self.is_over:
            self.mark_wrong("two ends")
        self.is_over = True
        try:
            body = _decode(data)
            if b"event: error" in head:
                self.reported(body)
                return
            self.reason = body["finish_reason"]
            self.read_usage(body)
        except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
            self.mark_wrong("no JSON")

    def finish(self) -> None:
        super().finish()
        if not self.error and self.usage not in (None, self.num):
            self.mark_wrong("number of tokens")

    def text_of(self, data: Any) -> Any:
        self.reason = data.get("finish_reason") or ""
        if self.request_id and data["request_id"].encode() != self.request_id:
            self.mark_wrong("another request's answer")
        return data["text"]


class OpenAIScanner(Scanner):
    """Chat completions and completions: chunks of `choices`, then `[DONE]`. Their order is not knowable."""

    def __init__(self, token: re.Pattern[bytes]) -> None:
        super().__init__()
        self._token = token

    def events(self, data: bytes) -> int:
        num = len(self._token.findall(data))
        if self.is_over:
            self.mark_wrong("an event after the end")
        if data.count(b"data:") != num or b'"error"' in data or b'"usage":{' in data or b'"finish_reason":"' in data:
            num = self._apart(data)
        self.num += num
        return num

    def _apart(self, data: bytes) -> int:
        num = 0
        for event in data.split(b"\n\n"):
            at = event.find(b"data:")
            if at < 0:
                continue
            if self.is_over:
                self.mark_wrong("an event after the end")
            text = event[at + 5 :].strip()
            if text == b"[DONE]":
                self.is_over = True
                continue
            try:
                num += self._chunk(_decode(text), text)
            except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
                self.mark_wrong("no JSON")
        if self.is_over and self.usage is not None:
            # A server may put several tokens in one chunk; what it counted is right, and must not be less than those.
            if self.usage < self.num + num:
                self.mark_wrong("number of tokens")
            num = max(num, self.usage - self.num)
        return num

    def _chunk(self, chunk: dict[str, Any], text: bytes) -> int:
        if chunk.get("error"):
            self.reported(chunk)
            return 0
        self.read_usage(chunk)
        for choice in chunk.get("choices") or ():
            self.reason = choice.get("finish_reason") or self.reason
        return len(self._token.findall(text))

    def finish(self) -> None:
        if self.usage is None and self.reason == "length":
            self.reason = ""  # chunks are not tokens: without `usage` the tokens are not known
        super().finish()

    def text_of(self, data: Any) -> Any:
        choice = data["choices"][0]
        self.reason = choice.get("finish_reason") or ""
        return choice["message"].get("content") or "" if "message" in choice else choice["text"]


def make_scanner(api: API) -> Scanner:
    if api == "generate":
        return GenerateScanner()
    return OpenAIScanner(_DELTA if api == "chat" else _TEXT)
