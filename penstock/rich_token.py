"""A token as it travels: plain text, or a `RichToken`, text with more than text. Pure; knows no step.

Nearly every token is a `str`. A `RichToken` has what some engines send with the text: a part of a tool call,
reasoning, log probabilities. Both take one place in the log and count as one token of it, so numbering, fencing and
continuation know no difference.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """A call of the client's tool `name`, or a part of one: parts of the same `index` are joined.

    `arguments` is the text of a JSON object, as the model wrote it, unchecked.
    """

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


class Logprob(Struct, frozen=True, omit_defaults=True):
    """One token of the engine's vocabulary with its natural log probability, and the likeliest ones at its place.

    `raw`: the token's bytes where `token` does not have them in UTF-8, such as half of a character. `top_raw`: the same
    for each of `top`, or () where none needs it.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    raw: bytes | None = None
    top_raw: tuple[bytes | None, ...] = ()

    def as_openai(self) -> dict[str, Any]:
        """In the form of OpenAI's APIs."""
        raws = self.top_raw or (None,) * len(self.top)
        tops = [_as_openai(*named, raw) for named, raw in zip(self.top, raws, strict=True)]
        return _as_openai(self.token, self.logprob, self.raw) | {"top_logprobs": tops}


def _as_openai(token: str, logprob: float, raw: bytes | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode() if raw is None else raw)}


class RichToken(Struct, frozen=True, omit_defaults=True):
    """`embedding`: one input's vector, as `encode_vector` writes it; it comes alone."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    embedding: str = ""


Token = str | RichToken


class Whole(Struct, frozen=True):
    """A whole answer: its tokens joined."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


def call_id_of(request_id: str, index: int) -> str:
    """The id of a tool call to which its engine gave none: every reader makes the same one."""
    return f"call_{request_id}_{index}"


def encode_vector(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64: OpenAI's `encoding_format: base64`, and what travels here."""
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats).decode()


def encoded_length(num: int) -> int:
    """The length of `encode_vector` for `num` numbers, in characters."""
    return 4 * math.ceil(4 * num / 3)


def decode_vector(text: str) -> list[float]:
    """Raises `ValueError` for what `encode_vector` has not written."""
    floats = array("f")
    floats.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


def text_of(token: Token) -> str:
    return token if isinstance(token, str) else token.text


def join_text(tokens: Iterable[Token]) -> str:
    return "".join([token if isinstance(token, str) else token.text for token in tokens])


def join(tokens: Sequence[Token]) -> Whole:
    """Join tokens into one answer. Tool calls are in the order of their index."""
    try:
        return Whole("".join(tokens))  # type: ignore[arg-type]  # as nearly every answer is: text alone
    except TypeError:
        return _join_rich(tokens)


def _join_rich(tokens: Sequence[Token]) -> Whole:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, ToolCall] = {}
    logprobs: list[Logprob] = []
    for token in tokens:
        if isinstance(token, str):
            texts.append(token)
            continue
        texts.append(token.text)
        reasoning.append(token.reasoning)
        logprobs.extend(token.logprobs)
        for part in token.tool_calls:
            call = calls.get(part.index)
            calls[part.index] = part if call is None else _extended(call, part)
    ordered = tuple(calls[index] for index in sorted(calls))
    return Whole("".join(texts), "".join(reasoning), ordered, tuple(logprobs))


def _extended(call: ToolCall, part: ToolCall) -> ToolCall:
    """Its id is that of its first part, as readers of a stream know it by then."""
    return replace(call, name=call.name + part.name, arguments=call.arguments + part.arguments)


def with_call_ids(whole: Whole, request_id: str) -> Whole:
    """`whole` with an id for each of its tool calls."""
    if not whole.tool_calls or all(call.id for call in whole.tool_calls):
        return whole
    calls = [call if call.id else replace(call, id=call_id_of(request_id, call.index)) for call in whole.tool_calls]
    return replace(whole, tool_calls=tuple(calls))
