"""Tokens that tell who made them: the real mock's timing, with a text that differs from one generation to the next.

Token i names its request, its place, its predecessor's nonce and its own, which is a function of the attempt. So two
generations spliced together show, even where every place and every request is right: `fault_of` says how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from penstock.backends.mock import engine as mock
from penstock.backends.mock.engine import MockBackend
from penstock.job import Claim
from penstock.rich_token import Token, text_of

_TOKEN = re.compile(r"(\S+)/(\d+):(\S+)>(\S+) ")


def fault_of(job_id: str, index: int, before: Token | None, token: Token) -> str | None:
    """What is wrong with `token` at `index` of this request, behind the token `before`; None if nothing is."""
    match = _TOKEN.fullmatch(text_of(token))
    if match is None:
        return f"{token!r} is no token"
    if match[1] != job_id:
        return f"{token!r} belongs to another request than {job_id}"
    if int(match[2]) != index:
        return f"{token!r} stands at place {index}"
    if match[3] != _nonce(before):
        return f"{token!r} follows {before!r}, which another generation made"
    return None


class _Chained(mock._Sequence):
    __slots__ = ("before",)

    def __init__(self, claim: Claim, backend: MockBackend) -> None:
        super().__init__(claim, backend)
        self.before = _nonce(claim.tokens[-1] if claim.tokens else None)
        self.token_of = self._next

    def _next(self, index: int) -> str:
        nonce = f"{crc32(f'{self.attempt} {index}'.encode()):x}"
        token = f"{self.job_id}/{index}:{self.before}>{nonce} "
        self.before = nonce
        return token


@contextmanager
def chained() -> Iterator[None]:
    """While this lasts every mock says such tokens."""
    sequence: Any = mock._Sequence
    vars(mock)["_Sequence"] = _Chained
    try:
        yield
    finally:
        vars(mock)["_Sequence"] = sequence


def _nonce(token: Token | None) -> str:
    match = _TOKEN.fullmatch(text_of(token)) if token is not None else None
    return match[4] if match is not None else "0"
