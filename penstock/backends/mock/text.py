"""The mock engine's tokens: token i of an answer is a function of the prompt, the sampling and i, of nothing else.

The request's id never enters, so the same prompt gives the same text, streamed or whole, at whichever worker and
attempt. `seed` (default 0), `temperature` and `top_p` are folded into the key: each of them changes the text.
Cheap on purpose: one multiplication and one look-up a token.

A chained token is a word followed by its own index, its predecessor's nonce and its own:
`" velo[12:3fa91c07>77b0e2d1]"`. The first token's predecessor is `00000000`. Where two answers were spliced, or a
token was lost, repeated or reordered, the chain breaks: `verify_chain` returns where.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from penstock.job import Job
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, encode_vector, text_of

TokenOf = Callable[[int], str]

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX = 0xD6E8FEB86659FD93
_SYLLABLES = [first + vowel for first, vowel in product("bdfgklmnprstvz", "aeiou")][:64]
_WORDS = tuple(f" {one}{two}" for one, two in product(_SYLLABLES, _SYLLABLES))
_LINK = re.compile(r" ?[A-Za-z]+\[(\d+):([0-9a-f]{8})>([0-9a-f]{8})\]")


def token_source(job: Job, chain: bool = False) -> TokenOf:
    """The function from an index to the token there, for this job's prompt and sampling."""
    sampling = job.sampling
    asked = repr((job.text, sampling.seed or 0, sampling.temperature, sampling.top_p))
    key = int.from_bytes(hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

    def number(index: int) -> int:
        mixed = ((key + index * _STEP) & _MASK) * _MIX & _MASK
        return mixed ^ (mixed >> 32)

    def word(index: int) -> str:
        mixed = ((key + index * _STEP) & _MASK) * _MIX & _MASK  # `number`, without the call
        text = _WORDS[(mixed ^ (mixed >> 32)) & 4095]
        return text if index else text[1:].capitalize()

    def link(index: int) -> str:
        before = f"{number(index - 1) >> 32:08x}" if index else "00000000"
        return f"{word(index)}[{index}:{before}>{number(index) >> 32:08x}]"

    return link if chain else word


def with_logprobs(token_of: TokenOf, num_top: int) -> Callable[[int], Token]:
    """The same tokens with log probabilities: -0.1 for each, and made-up alternatives that are less likely."""

    def scored(index: int) -> Token:
        token = token_of(index)
        others = ((f" other{rank}", -1.0 - rank) for rank in range(1, num_top))
        top = ((token, -0.1), *others) if num_top else ()
        return RichToken(token, logprobs=(Logprob(token, -0.1, top),))

    return scored


def tool_script(job: Job) -> list[Token]:
    """The tokens of a tool call, one fragment each; none where the job offers no tool or is to be answered in words."""
    functions = [tool["function"] for tool in job.sampling.tools if isinstance(tool.get("function"), dict)]
    choice = job.sampling.tool_choice
    if isinstance(choice, dict):
        functions = [each for each in functions if each.get("name") == choice.get("function", {}).get("name")]
    is_answered = job.messages is not None and job.messages[-1].role == "tool"
    if not functions or choice == "none" or is_answered:
        return []
    name = str(functions[0].get("name", ""))
    arguments = json.dumps(_arguments(functions[0].get("parameters")))
    call_id = f"call_{hashlib.blake2b(f'{job.text}{name}'.encode(), digest_size=8).hexdigest()}"
    parts = [arguments[at : at + 6] for at in range(0, len(arguments), 6)]
    head = RichToken(tool_calls=(ToolCall(0, call_id, name),))
    return [head, *(RichToken(tool_calls=(ToolCall(0, arguments=part),)) for part in parts)]


def embedding_of(job: Job) -> Callable[[int], Token]:
    """The embedding of each input: a unit vector that is a function of its text and the number of dimensions."""
    size = job.sampling.dimensions or 8

    def embedded(index: int) -> Token:
        key = job.inputs[index].encode("utf-8", "surrogatepass")
        digest = hashlib.shake_128(key).digest(2 * size)
        raw = [int.from_bytes(digest[at : at + 2], "big") - 32767.5 for at in range(0, 2 * size, 2)]
        length = math.sqrt(sum(one * one for one in raw))
        return RichToken(embedding=encode_vector([one / length for one in raw]))

    return embedded


def _arguments(schema: Any) -> dict[str, Any]:
    """A value for each property of an object's JSON schema that has a plain type."""
    values = {"string": "velo", "integer": 1, "number": 1.5, "boolean": True}
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    kinds = {name: each.get("type") for name, each in properties.items() if isinstance(each, dict)}
    return {name: values[kind] for name, kind in kinds.items() if isinstance(kind, str) and kind in values}


def verify_chain(tokens: Sequence[Token]) -> str | None:
    """A description of the first place where a chained answer is not that of one generation; None if unbroken."""
    before = "00000000"
    for index, token in enumerate(tokens):
        match = _LINK.fullmatch(text_of(token))
        if match is None:
            return f"token {index} is not a chained token: {token!r}"
        if int(match[1]) != index:
            return f"token {match[1]} is at place {index}"
        if match[2] != before:
            return f"token {index} follows {match[2]}, but the token before it is {before}"
        before = match[3]
    return None
