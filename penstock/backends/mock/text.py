"""The mock's tokens in words: token i of an answer is a function of the prompt, the sampling and i, of nothing else.

The request's id never enters, so the same prompt gives the same text, streamed or whole, at whichever worker and
attempt. `seed` (default 0), `temperature` and `top_p` are folded into the key: each of them changes the text.

A chained token is a word followed by its own index, its predecessor's nonce and its own:
`" lantern[12:3fa91c07>77b0e2d1]"`. The first token's predecessor is `00000000`. Where two answers were spliced, or a
token was lost, repeated or reordered, the chain breaks: `verify_chain` returns where.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from penstock.backends.mock.sentences import TokenOf, sentences
from penstock.job import Job
from penstock.rich_token import Logprob, RichToken, Token, text_of

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX = 0xD6E8FEB86659FD93
_LINK = re.compile(r" ?[A-Za-z]+\.?\[(\d+):([0-9a-f]{8})>([0-9a-f]{8})\]")


def key_of(job: Job) -> int:
    """64 bits, a function of the job's prompt and of what changes the text."""
    sampling = job.sampling
    asked = repr((job.text, sampling.seed or 0, sampling.temperature, sampling.top_p))
    return int.from_bytes(hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def number(key: int, index: int) -> int:
    """64 bits, a function of the key and the index."""
    mixed = ((key + index * _STEP) & _MASK) * _MIX & _MASK
    return mixed ^ (mixed >> 32)


def token_source(job: Job, chain: bool = False) -> TokenOf:
    """The function from an index to the token there, for this job's prompt and sampling."""
    key = key_of(job)
    return links(key) if chain else sentences(key)


def links(key: int) -> TokenOf:
    """`sentences` with chained tokens."""
    word = sentences(key)

    def link(index: int) -> str:
        before = f"{number(key, index - 1) >> 32:08x}" if index else "00000000"
        return f"{word(index)}[{index}:{before}>{number(key, index) >> 32:08x}]"

    return link


def with_logprobs(token_of: Callable[[int], Token], num_top: int) -> Callable[[int], Token]:
    """The same tokens, text with log probabilities: -0.1 each, and made-up alternatives that are less likely."""

    def scored(index: int) -> Token:
        token = token_of(index)
        if not isinstance(token, str):
            return token
        others = ((f" other{rank}", -1.0 - rank) for rank in range(1, num_top))
        top = ((token, -0.1), *others) if num_top else ()
        return RichToken(token, logprobs=(Logprob(token, -0.1, top),))

    return scored


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
