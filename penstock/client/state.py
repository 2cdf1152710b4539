"""The state of one stream while it runs, and the properties that a user may read. Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from penstock.client.types import Answer, Timings
from penstock.event import Usage
from penstock.rich_token import RichToken, Token, ToolCall, join, join_text, with_call_ids
from penstock.sse import ServerEvent

T = TypeVar("T")
_PLAIN = {"request_id", "index", "text"}  # the fields of a token that is text alone


@dataclass(slots=True)
class StreamState:
    """The state of one stream while it runs."""

    request_id: str = ""
    model: str = ""
    tokens: list[Token] = field(default_factory=list)
    last_id: str = ""
    position: int | None = None
    answer: Answer | None = None
    num_resumed: int = 0
    has_failed: bool = False  # in an error of its own: there is nothing left to cancel

    @property
    def is_running(self) -> bool:
        """The server may still work on it, as far as is known."""
        return bool(self.request_id) and self.answer is None and not self.has_failed

    def take(self, event: ServerEvent, data: Mapping[str, Any]) -> bool | None:
        """Fold one event in. True: a new token; False: nothing to give; None: there is a gap before it."""
        self.request_id = str(data.get("request_id") or self.request_id)
        if event.event == "queued":
            self.position = data.get("position")
            return False
        if event.event == "token":
            index = data.get("index")
            if not isinstance(index, int) or index > len(self.tokens):
                return None
            self.position = None
            if index < len(self.tokens):
                return False
            self.tokens.append(_token(data))
            self.last_id = event.id or self.last_id
            return True
        if event.event == "done":
            self.answer = self._answer(data)
        return False  # an event of a newer server is not a fault

    def _answer(self, data: Mapping[str, Any]) -> Answer:
        whole = with_call_ids(join(self.tokens), self.request_id)
        return Answer(
            request_id=self.request_id,
            model=str(data.get("model", "")),
            text=whole.text,
            finish_reason=str(data.get("finish_reason", "")),
            usage=_convert(data.get("usage"), Usage, Usage()),
            timings=_convert(data.get("timings"), Timings, Timings()),
            reasoning=whole.reasoning,
            tool_calls=whole.tool_calls,
            logprobs=whole.logprobs,
        )


class StreamBase:
    """The properties of a stream for its user, in either shell."""

    def __init__(self, state: StreamState) -> None:
        self._state = state

    def _whole(self) -> Answer:
        if self._state.answer is None:
            raise RuntimeError("the stream was left, or has failed, before its end")
        return self._state.answer

    @property
    def request_id(self) -> str:
        """Known from the head of the answer on; "" before."""
        return self._state.request_id

    @property
    def text(self) -> str:
        """The answer so far."""
        return join_text(self._state.tokens)

    @property
    def reasoning(self) -> str:
        """The model's reasoning so far."""
        return join(self._state.tokens).reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far; the last one may not be whole before the end."""
        return with_call_ids(join(self._state.tokens), self._state.request_id).tool_calls

    @property
    def position(self) -> int | None:
        """Its place in the queue (1 is next), when the server has sent one and it has not begun."""
        return self._state.position

    @property
    def num_resumed(self) -> int:
        """How often the stream was resumed."""
        return self._state.num_resumed

    @property
    def answer(self) -> Answer | None:
        """The whole answer, at the end."""
        return self._state.answer


def _token(data: Mapping[str, Any]) -> Token:
    text = str(data.get("text", ""))
    return text if data.keys() <= _PLAIN else _convert(data, RichToken, RichToken(text))


def _convert(data: Any, kind: type[T], default: T) -> T:
    """A part of an answer that may be missing or of another form in a newer server."""
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError:
        return default
