"""The tasks of a job other than to generate and to embed, and the tokens that are their results. Pure.

    task            reads                            its tokens, each a text
    count           `prompt` or `messages`           one: the number of tokens
    tokenize        `prompt` or `messages`           one: a `Tokenized`, JSON
    detokenize      `inputs`, one list of token ids  the text; none if it is empty
    score           `queries` and `inputs`           one for each input: its score, a JSON number
    tokenizer_info  nothing                          one: the configuration of the tokenizer, a JSON object

Knows nothing of who does them, and of the form in which an API asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import BackendError
from penstock.rich_token import Token, join_text

COUNT, TOKENIZE, DETOKENIZE, SCORE, TOKENIZER_INFO = TASKS = (
    "count", "tokenize", "detokenize", "score", "tokenizer_info",
)  # fmt: skip

# What a model that does not have a task cannot do, for a sentence.
VERBS = {
    COUNT: "count tokens",
    TOKENIZE: "tokenize",
    DETOKENIZE: "detokenize",
    SCORE: "score texts",
    TOKENIZER_INFO: "describe its tokenizer",
}

_IN_IDS = b"0123456789, \t\r\n"
_UNREADABLE = "The model's backend sent a result that cannot be read."


class Tokenized(Struct, frozen=True, omit_defaults=True):
    """`ids`: of the vocabulary. `strs`: each token's text, if it was asked for. `max_model_len`: of the model's context
    in tokens, where the engine reports it.
    """

    ids: tuple[int, ...]
    strs: tuple[str, ...] | None = None
    max_model_len: int | None = None


class TokenizedJson(Struct, frozen=True):
    """The same as it came, for a reader that passes it on: a large body has half a million ids."""

    ids: msgspec.Raw
    strs: msgspec.Raw = msgspec.Raw(b"null")
    max_model_len: int | None = None

    @property
    def count(self) -> int:
        ids = bytes(self.ids)
        return ids.count(b",") + 1 if any(map(ids.__contains__, b"0123456789")) else 0


def encode_score(score: float) -> str:
    """Raises `BackendError` for a score that is not a finite number."""
    if not math.isfinite(score):
        raise BackendError("The model's backend gave a score that is not a finite number.")
    return encode(score)


def encode(result: Any) -> str:
    return msgspec.json.encode(result).decode()


def read_count(tokens: Sequence[Token]) -> int:
    """Raises `BackendError`, as the other readers do, for what is not such a result."""
    count: int = _decode(join_text(tokens), int)
    return count


def read_tokenized(tokens: Sequence[Token]) -> TokenizedJson:
    result: TokenizedJson = _decode(join_text(tokens), TokenizedJson)
    if bytes(result.ids).translate(None, _IN_IDS) != b"[]" or bytes(result.strs)[:1] not in (b"[", b"n"):
        raise BackendError(_UNREADABLE)
    return result


def read_info(tokens: Sequence[Token]) -> dict[str, Any]:
    info: dict[str, Any] = _decode(join_text(tokens), dict[str, Any])
    return info


def read_scores(tokens: Sequence[Token], num: int) -> list[float]:
    scores: list[float] = [_decode(join_text([token]), float) for token in tokens]
    if len(scores) != num:
        raise BackendError(_UNREADABLE)
    return scores


def _decode(text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        raise BackendError(_UNREADABLE) from None
