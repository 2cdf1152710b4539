"""The mock engine's tokenizer and its scores: made up, deterministic, and in agreement with the usage that it reports.

A token is a word between white space, as in `usage`. The id of a word of up to 6 bytes is these bytes and their number,
so `detokenize` reads it back; a longer word's is a hash, and it reads back as `<unk>`. Ids are exact in JavaScript. A
score is the share of words that two texts have in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from penstock.event import Usage
from penstock.job import Job
from penstock.rich_token import Token
from penstock.tasks import COUNT, DETOKENIZE, SCORE, TOKENIZE, Tokenized, encode, encode_score

UNKNOWN = "<unk>"
ACCEPTS = ("token_ids", "add_special_tokens", "return_token_strs")  # it has no special tokens to add

_MAX_BYTES = 6
_SHIFT = 8 * _MAX_BYTES
_HASHED = _MAX_BYTES + 1  # in place of a number of bytes


def tokens_of(job: Job, num_prompt_tokens: int) -> tuple[list[Token], Usage]:
    """All tokens of a job that has a task, and its usage. `num_prompt_tokens`: as its usage would have it."""
    if job.task == SCORE:
        queries = job.queries if len(job.queries) > 1 else job.queries * len(job.inputs)
        pairs = [(query.split(), str(text).split()) for query, text in zip(queries, job.inputs, strict=True)]
        scores: list[Token] = [encode_score(_share(*pair)) for pair in pairs]
        return scores, Usage(sum(len(query) + len(text) for query, text in pairs))
    return [token for token in [_result(job, num_prompt_tokens)] if token], Usage()


def _result(job: Job, num_prompt_tokens: int) -> str:
    if job.task == COUNT:
        return encode(num_prompt_tokens)
    if job.task == TOKENIZE:
        words = job.text.split()
        ids = {word: id_of(word) for word in set(words)}  # each once: a long text repeats its words
        strs = tuple(words) if job.sampling.return_token_strs else None
        return encode(Tokenized(tuple([ids[word] for word in words]), strs))
    if job.task == DETOKENIZE:
        return " ".join(word_of(int(one)) for one in job.inputs[0])
    return encode({"tokenizer_class": "MockTokenizer", "unk_token": UNKNOWN, "bos_token": None, "eos_token": None})


def id_of(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    if len(data) <= _MAX_BYTES:
        return len(data) << _SHIFT | int.from_bytes(data, "big")
    return _HASHED << _SHIFT | int.from_bytes(hashlib.blake2b(data, digest_size=_MAX_BYTES).digest(), "big")


def word_of(token_id: int) -> str:
    """The word of an id; `UNKNOWN` for the id of a longer word, and for what is not an id."""
    size, data = token_id >> _SHIFT, token_id & ((1 << _SHIFT) - 1)
    if not 0 < size <= _MAX_BYTES or data >> 8 * size:
        return UNKNOWN
    try:
        return data.to_bytes(size, "big").decode()
    except UnicodeDecodeError:
        return UNKNOWN


def _share(one: Sequence[str], other: Sequence[str]) -> float:
    """Words that both have, of those that either has, regardless of case."""
    mine, others = {word.lower() for word in one}, {word.lower() for word in other}
    return len(mine & others) / len(mine | others) if mine | others else 0.0
