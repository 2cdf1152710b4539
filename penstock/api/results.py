"""`ResultResponse`: the answer to a request whose task is not to generate. It is always whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from penstock.api.answer import AnswerResponse
from penstock.api.answer_fields import failure_of
from penstock.api.opened import Opened
from penstock.errors import PenstockError
from penstock.event import Done, Terminal
from penstock.rich_token import Token


class ResultResponse(AnswerResponse):
    """`show`: the answer's JSON, made of the tokens and the end; it raises `BackendError` for tokens that are not a
    result of the task.
    """

    def __init__(self, opened: Opened, show: Callable[[Sequence[Token], Done], dict[str, Any]]) -> None:
        super().__init__(opened, is_stream=False)
        self._show = show
        self._shown: dict[str, Any] = {}

    def failure(self, end: Terminal) -> PenstockError | None:
        error = failure_of(end)
        if error is None and isinstance(end, Done):
            try:
                self._shown = self._show(self.stream.tokens, end)
            except PenstockError as unreadable:
                return unreadable
        return error

    def whole(self, ends: Sequence[Done]) -> bytes:
        return msgspec.json.encode(self._shown)
