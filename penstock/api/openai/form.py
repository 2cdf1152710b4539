"""The frame around choices, common to the answers of chat completions and completions. Pure.

A `Form` is made for one answer. Its `token` runs once a token, so what does not change is encoded once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.errors import PenstockError
from penstock.rich_token import Token, Whole

DONE = b"data: [DONE]\n\n"
_NO_USAGE = b',"usage":null'


class Form:
    """`created`: seconds since 1970. With `includes_usage` every chunk has `usage`, null in all but the last."""

    id_prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, request_id: str, model: str, created: int, *, includes_usage: bool = False) -> None:
        self.includes_usage = includes_usage
        self.request_id = request_id
        self.job_ids: dict[int, str] = {}  # of the request of each choice, where it is another one
        self._same = {"id": self.id_prefix + request_id, "created": created, "model": model}
        chunk = msgspec.json.encode({**self._same, "object": self.chunk_object})
        self.head = b'data: %s,"choices":[' % chunk[:-1]
        self.tail = b"]%s}\n\n" % (_NO_USAGE if includes_usage else b"")

    # ── what an API fills in ─────────────────────────────────────────────────────────────────────────────────────

    def open(self, index: int) -> list[bytes]:
        """The bytes in front of the first token of a choice."""
        return []

    def token(self, index: int, token: Token) -> bytes:
        """The chunk of one token of the choice `index`."""
        raise NotImplementedError

    def finish(self, index: int, reason: str) -> bytes:
        """The chunk that ends a choice."""
        raise NotImplementedError

    def choice(self, index: int, whole: Whole, reason: str) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    # ── what is the same ─────────────────────────────────────────────────────────────────────────────────────────

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return b"%s%s%s" % (self.head, msgspec.json.encode(choice), self.tail)

    def close(self, usage: dict[str, int]) -> bytes:
        """The bytes behind all choices."""
        if not self.includes_usage:
            return DONE
        last = {**self._same, "object": self.chunk_object, "choices": [], "usage": usage}
        return b"data: %s\n\n%s" % (msgspec.json.encode(last), DONE)

    def error(self, error: PenstockError) -> bytes:
        """The end of a stream that failed: OpenAI's clients raise it; `[DONE]` does not follow."""
        return b"data: %s\n\n" % msgspec.json.encode(error.envelope())

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> bytes:
        return msgspec.json.encode({**self._same, "object": self.whole_object, "choices": choices, "usage": usage})
