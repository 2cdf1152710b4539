"""The mock's sentences: English, a word a token, and an end of their own."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.mock.sentences import LONGEST, SHORTEST, natural_length, sentences, thoughts

keys = st.integers(0, 2**64 - 1)
SENTENCES = re.compile(r"(?:[A-Z][a-z]+(?: [a-z]+)+\. )*")


@given(keys, st.integers(0, 10_000))
def test_a_token_is_one_word_with_its_space(key: int, index: int) -> None:
    token = sentences(key)(index)
    assert re.fullmatch(r" [A-Za-z]+\.?" if index else r"[A-Z][a-z]*", token)


@given(keys)
def test_an_answer_of_its_own_length_is_whole_sentences(key: int) -> None:
    length = natural_length(key)
    assert SHORTEST <= length <= LONGEST
    text = "".join(map(sentences(key), range(length)))
    assert SENTENCES.fullmatch(text + " "), text
    assert len(text.split()) == length


def test_lengths_texts_and_thoughts_differ() -> None:
    some = [key * 0x9E3779B97F4A7C15 % 2**64 for key in range(1000)]
    assert len({natural_length(key) for key in some}) > 20
    assert len({"".join(map(sentences(key), range(8))) for key in some}) == 1000
    assert all(thoughts(key)(3) != sentences(key)(3) for key in some[:3])
