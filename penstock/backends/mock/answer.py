"""The mock's answer to a job: which tokens, how many, and why it ends. A function of the job, not of the attempt.

In this order: reasoning, if `reasoning_effort` asks for it; then the text that the prompt dictates (`script.py`), tool
calls (`calls.py`), JSON for a `response_format` (`schema/`), or sentences. All but sentences end by themselves.
Sentences end by themselves after 12 to 60 tokens, or run to `max_tokens` (256 where none is named): `Ends`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from penstock.backends.mock.calls import calls_of, is_demanded
from penstock.backends.mock.schema.keywords import Unwritable, shown
from penstock.backends.mock.schema.values import value_for
from penstock.backends.mock.script import tokens_of, words_of
from penstock.backends.mock.sentences import natural_length, sentences, thoughts
from penstock.backends.mock.text import key_of, links, with_logprobs
from penstock.backends.mock.vectors import embedding_of
from penstock.errors import InvalidRequest
from penstock.event import FinishReason
from penstock.job import Job
from penstock.rich_token import RichToken, Token

# `auto`: a conversation is answered to a natural end, a prompt up to `max_tokens`.
Ends = Literal["auto", "natural", "length"]

T = TypeVar("T")

REASONING = {"minimal": 6, "low": 12, "medium": 24, "high": 48, "xhigh": 96, "max": 192}  # tokens
OWN_MAX_TOKENS = 256
JSON_LENGTH = 6  # characters of a JSON answer in a token


@dataclass(frozen=True, slots=True)
class Answer:
    """`token_of` gives the token at an index below `num_tokens`; after the last one it ends with `reason`."""

    token_of: Callable[[int], Token]
    num_tokens: int
    reason: FinishReason

    def cut(self, max_tokens: int) -> Answer:
        return self if self.num_tokens <= max_tokens else Answer(self.token_of, max_tokens, "length")


def most_tokens(job: Job) -> int:
    """Where sentences end that do not end by themselves. Without a limit of the client the mock has one of its own."""
    sampling = job.sampling
    return sampling.max_tokens if sampling.max_tokens_given else min(sampling.max_tokens, OWN_MAX_TOKENS)


NOTHING = Answer(lambda index: "", 0, "stop")


def answer_to(job: Job, ends: Ends = "auto", chain: bool = False) -> Answer:
    """The answer, cut at `max_tokens`. Raises `InvalidRequest` for a schema to which no value is found, and for extras
    of the wrong type.

    `chain`: the tokens of sentences name their predecessors.
    """
    sampling = job.sampling
    if job.inputs:
        return Answer(embedding_of(job), len(job.inputs), "stop")
    key = key_of(job)
    num_thoughts = REASONING.get(sampling.reasoning_effort or "", 0)
    answer = _given(job, key)
    if answer is None:
        words = links(key) if chain else sentences(key)
        ignores_end, least = _extra(job, "ignore_eos", False), _extra(job, "min_tokens", 0)
        if ignores_end or ends == "length" or (ends == "auto" and job.messages is None):
            answer = Answer(words, max(0, most_tokens(job) - num_thoughts), "length")
        else:
            answer = Answer(words, max(natural_length(key), least - num_thoughts), "stop")
    if sampling.logprobs is not None:
        answer = Answer(with_logprobs(answer.token_of, sampling.logprobs), answer.num_tokens, answer.reason)
    if num_thoughts:
        answer = _after_thoughts(key, num_thoughts, answer)
    return answer.cut(sampling.max_tokens)


def _extra(job: Job, name: str, default: T) -> T:
    value = job.sampling.extras.get(name, default)
    if type(value) is not type(default):
        kind = "true or false" if default is False else "a whole number"
        raise InvalidRequest(f"{name!r} must be {kind}.", param=name)
    return value


def _given(job: Job, key: int) -> Answer | None:
    """The answer that is more than sentences; None where it is not."""
    sampling = job.sampling
    dictated = words_of(job)
    tokens: list[Token] = []
    if dictated is not None:
        tokens += islice(tokens_of(dictated), sampling.max_tokens + 1)
    if sampling.tools and (dictated is None or is_demanded(job)):
        with _refusal("tools"):
            calls = calls_of(job, key)
        if calls:
            return _listed([*tokens, *calls], "tool_calls")
    if dictated is None and sampling.response_format is not None:
        with _refusal("response_format"):
            text = shown(value_for(_schema_of(sampling.response_format, key), key))
        tokens += [text[at : at + JSON_LENGTH] for at in range(0, len(text), JSON_LENGTH)]
    elif dictated is None:
        return None
    return _listed(tokens, "stop")


def _listed(tokens: list[Token], reason: FinishReason) -> Answer:
    return Answer(tokens.__getitem__, len(tokens), reason)


@contextmanager
def _refusal(param: str) -> Iterator[None]:
    try:
        yield
    except Unwritable as error:
        raise InvalidRequest(f"The mock writes no value for the schema in {param!r}: {error}.", param=param) from None


def _schema_of(response_format: dict[str, Any], key: int) -> Any:
    """What the answer is to be valid against; without a schema, an object with a sentence."""
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if schema is not None:
        return schema
    sentence = "".join(map(sentences(key), range(natural_length(key))))
    return {"type": "object", "properties": {"answer": {"const": sentence}}, "required": ["answer"]}


def _after_thoughts(key: int, num: int, answer: Answer) -> Answer:
    """The same answer behind `num` tokens of reasoning."""
    thought_of, token_of = thoughts(key), answer.token_of

    def token_at(index: int) -> Token:
        return RichToken(reasoning=thought_of(index)) if index < num else token_of(index - num)

    return Answer(token_at, num + answer.num_tokens, answer.reason)
