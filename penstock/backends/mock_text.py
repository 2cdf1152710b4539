"""What the mock engine says: token i of an answer is a function of the prompt, the sampling and i, of nothing else.

The request's id never enters, so the same prompt gives the same text, streamed or whole, at whichever worker and
attempt. `seed` (default 0), `temperature` and `top_p` are folded into the key: each of them changes the text.
Cheap on purpose: one multiplication and one look-up a token.

A chained token is a word followed by its own index, its predecessor's nonce and its own:
`" velo[12:3fa91c07>77b0e2d1]"`. The first token's predecessor is `00000000`. Where two answers were spliced, or a
token was lost, repeated or reordered, the chain breaks: `verify_chain` says where.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import product

from penstock.job import Job

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


def verify_chain(tokens: Sequence[str]) -> str | None:
    """Where a chained answer is not what one generation says: a description of the first break; None if unbroken."""
    before = "00000000"
    for index, token in enumerate(tokens):
        match = _LINK.fullmatch(token)
        if match is None:
            return f"token {index} is no chained token: {token!r}"
        if int(match[1]) != index:
            return f"token {match[1]} stands at place {index}"
        if match[2] != before:
            return f"token {index} follows {match[2]}, but {before} stands before it"
        before = match[3]
    return None
