"""An answer in parts: its tokens, put in order as text, reasoning and tool calls, each opened, grown and closed. Pure.

The APIs that stream an answer as a list of typed parts (OpenAI's Responses, Anthropic's Messages) say each change in
their own words: they fill in `opened`, `grown` and `closed`. What these give is a function of the tokens alone, token
by token; how tokens came together in frames changes nothing.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

from penstock.rich_token import Logprob, RichToken, Token, ToolCall, call_id_of


class Part:
    """One part. `text` is its content: words, or the arguments of a call. `index` counts the parts from 0.

    `is_cut`: it was closed before the model had ended it.
    """

    __slots__ = ("call_id", "index", "is_cut", "is_open", "kind", "logprobs", "name", "texts")

    def __init__(self, index: int, kind: Literal["text", "reasoning", "call"]) -> None:
        self.index = index
        self.kind = kind
        self.texts: list[str] = []
        self.logprobs: list[Logprob] = []
        self.call_id = self.name = ""
        self.is_open = True
        self.is_cut = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def arguments(self) -> dict[str, object] | None:
        """The arguments of a call; blank or null are `{}`. None where the model has written no JSON object."""
        try:
            value = json.loads(self.text.strip() or "null")
        except ValueError:
            return None
        return {} if value is None else value if isinstance(value, dict) else None


class Parts(ABC):
    """See the head of this file. One instance reads one answer from its first token.

    A part ends where another begins. A call that is not a whole JSON object by then stays open to the end of the
    answer, as some engines write several calls at once.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.parts: list[Part] = []
        self._current: Part | None = None
        self._calls: dict[int, Part] = {}

    @abstractmethod
    def opened(self, part: Part) -> list[bytes]:
        """The events that begin a part. The id of a call does not change after this."""

    @abstractmethod
    def grown(self, part: Part, text: str, logprobs: tuple[Logprob, ...]) -> list[bytes]:
        """The events of one more bit of it."""

    @abstractmethod
    def closed(self, part: Part, *, is_complete: bool) -> list[bytes]:
        """The events that end it."""

    def token(self, token: Token) -> list[bytes]:
        """The events of the next token."""
        part = self._current
        if isinstance(token, str):
            if part is None or part.kind != "text":
                frames, part = self._switch("text")
                return frames + self._grow(part, token)
            part.texts.append(token)
            return self.grown(part, token, ())
        return self._rich(token)

    def all_of(self, tokens: Iterable[Token]) -> list[bytes]:
        """The events of the next tokens."""
        return [frame for token in tokens for frame in self.token(token)]

    def read(self, tokens: Sequence[Token]) -> None:
        """Take all these tokens without returning events: text alone, as nearly every answer is, at once."""
        try:
            text = "".join(tokens)  # type: ignore[arg-type]  # a `RichToken` among them is a TypeError
        except TypeError:
            self.all_of(tokens)
        else:
            self.all_of([text] if tokens else [])

    def finish(self, *, is_complete: bool) -> list[bytes]:
        """Close what is open: the answer is at its end. `is_complete`: the model ended it, and was not cut off."""
        frames: list[bytes] = []
        for part in self.parts:
            if part.is_open:
                frames += self._close(part, is_complete=is_complete)
        return frames

    def text(self) -> str:
        """The words of the whole answer, without reasoning."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    def reasoning(self) -> str:
        """The reasoning of the whole answer; that of several parts in lines of their own."""
        return "\n".join(part.text for part in self.parts if part.kind == "reasoning")

    def calls(self) -> tuple[ToolCall, ...]:
        """Every tool call so far."""
        calls = [part for part in self.parts if part.kind == "call"]
        return tuple(ToolCall(index, call.call_id, call.name, call.text) for index, call in enumerate(calls))

    def _rich(self, token: RichToken) -> list[bytes]:
        frames: list[bytes] = []
        if token.reasoning:
            opening, part = self._switch("reasoning")
            frames += opening + self._grow(part, token.reasoning)
        is_bare = not token.reasoning and not token.tool_calls
        if token.text or (is_bare and token.logprobs):  # half a character has no text yet, but a probability
            opening, part = self._switch("text")
            frames += opening + self._grow(part, token.text, token.logprobs)
        for call in token.tool_calls:
            opening, part = self._call(call)
            frames += opening
            if call.arguments:
                frames += self._grow(part, call.arguments)
        return frames

    def _grow(self, part: Part, text: str, logprobs: tuple[Logprob, ...] = ()) -> list[bytes]:
        part.texts.append(text)
        part.logprobs.extend(logprobs)
        return self.grown(part, text, logprobs)

    def _switch(self, kind: Literal["text", "reasoning"]) -> tuple[list[bytes], Part]:
        """The part that words of this kind belong to, and the events that lead there."""
        part = self._current
        if part is not None and part.kind == kind:
            return [], part
        frames = self._leave()
        part = self._new(Part(len(self.parts), kind))
        return frames + self.opened(part), part

    def _call(self, call: ToolCall) -> tuple[list[bytes], Part]:
        part = self._calls.get(call.index)
        if part is not None:
            frames = [] if part is self._current else self._leave()
            part.name += call.name
            self._current = part
            return frames, part
        frames = self._leave()
        part = self._new(Part(len(self.parts), "call"))
        part.call_id = call.id or call_id_of(self.request_id, call.index)  # some engines name none
        part.name = call.name
        self._calls[call.index] = part
        return frames + self.opened(part), part

    def _new(self, part: Part) -> Part:
        self.parts.append(part)
        self._current = part
        return part

    def _leave(self) -> list[bytes]:
        part = self._current
        if part is None or not part.is_open:
            return []
        if part.kind == "call" and (not part.text.strip() or part.arguments() is None):
            return []
        return self._close(part, is_complete=True)

    def _close(self, part: Part, *, is_complete: bool) -> list[bytes]:
        part.is_open = False
        part.is_cut = not is_complete
        return self.closed(part, is_complete=is_complete)
