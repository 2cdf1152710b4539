"""The mock's tokenizer agrees with its usage, and reads back what it can; its scores are shares of common words."""

from __future__ import annotations

import time

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.mock.engine import MockBackend
from penstock.backends.mock.tasks import UNKNOWN, id_of, tokens_of, word_of
from penstock.event import Done, Event, Usage, fold
from penstock.job import Batch, Claim, Job, Sampling
from penstock.tasks import read_count, read_scores, read_tokenized


@given(st.text(max_size=40))
def test_a_text_has_as_many_tokens_as_its_usage_has(text: str) -> None:
    job = Job(id="g.1", model="m", prompt=text, task="tokenize", sampling=Sampling(return_token_strs=True))
    num = MockBackend().count_prompt_tokens(job)
    tokens, usage = tokens_of(job, num)
    found = read_tokenized(tokens)
    assert found.count == len(msgspec.json.decode(found.strs)) == num
    assert usage == Usage()
    assert read_count(tokens_of(Job(id="g.1", model="m", prompt=text, task="count"), num)[0]) == num


@given(st.text(min_size=1, max_size=12).filter(lambda text: text.split() == [text]))
def test_a_short_word_is_read_back_and_a_longer_one_is_unknown(word: str) -> None:
    assert word_of(id_of(word)) == (word if len(word.encode()) <= 6 else UNKNOWN)
    assert 0 < id_of(word) < 2**53  # exact in JavaScript


@given(st.integers(0, 2**63 - 1))
def test_any_id_has_a_word(token_id: int) -> None:
    word = word_of(token_id)
    assert word == UNKNOWN or id_of(word) == token_id


async def test_scores_are_shares_of_common_words() -> None:
    job = Job(id="g.1", model="m", task="score", queries=("a b",), inputs=("b A", "a c", "d", ""))
    claim = Claim(job, 1, time.monotonic() + 60)
    events: list[Event] = [event async for event in MockBackend().generate(Batch((claim,)))]
    said = fold(events)
    assert read_scores(said.tokens, 4) == [1.0, 1 / 3, 0.0, 0.0]
    assert isinstance(said.end, Done)
    assert (said.end.finish_reason, said.end.usage) == ("stop", Usage(13, 0))
