"""What a prompt may dictate to the mock."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.mock.script import MAX_TEXT, tokens_of, trigger_of, words_of
from penstock.job import Job, Message


def asking(*messages: Message) -> Job:
    return Job(id="j", model="mock", messages=messages)


def prompted(prompt: str) -> str | None:
    return words_of(Job(id="j", model="mock", prompt=prompt))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("[[say hello there]]", "hello there"),
        ("Please [[say a\n\nb ]] now, and [[say no more]].", "a\n\nb "),
        ("[[say ]]", ""),
        ("[[say [1, 2]]]", "[1, 2]"),
        ("[[say [[1], [2]]]]", "[[1], [2]]"),
        ("[[say [1, [2]]]]", "[1, [2]]"),
        ("[[say [[ ## a ## ]] 42 [[ ## b ## ]]]] reply with [[ ## a ## ]]", "[[ ## a ## ]] 42 [[ ## b ## ]]"),
        ("[[say [[echo]]]]", "[[echo]]"),
        ("[[echo]] one two", "one two"),
        ("one [[echo]]", "one"),
        ("[[say a] b [c]] d", "a] b [c"),
        ("[[say without an end", None),
        ("[[say]] [[ say x]] say", None),
        ("plain", None),
    ],
)
def test_words_that_are_dictated(prompt: str, words: str | None) -> None:
    assert prompted(prompt) == words


@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3)))
def test_any_json_can_be_dictated(value: object) -> None:
    assert prompted(f"[[say {json.dumps(value)}]] and no more") == json.dumps(value)


def test_only_the_last_message_of_the_user_dictates_and_an_echo_is_of_the_last_message() -> None:
    said, system = Message("user", "[[say old]]"), Message("system", "[[say system]]")
    assert words_of(asking(system, Message("user", "hello"))) is None
    assert words_of(asking(said, Message("assistant", "old"), Message("user", "and?"))) is None
    result = Message("tool", "17 degrees", tool_call_id="c")
    assert words_of(asking(Message("user", "[[echo]] weather?"), Message("assistant", ""), result)) == "17 degrees"


@given(st.text(max_size=60))
def test_tokens_lose_nothing_and_are_short(text: str) -> None:
    tokens = list(tokens_of(text))
    assert "".join(tokens) == text
    assert all(token and len(token.strip()) <= 12 for token in tokens)


def test_more_than_can_be_dictated_is_plain_text() -> None:
    assert prompted("[[say " + "a" * (MAX_TEXT - 2) + "]]") == "a" * (MAX_TEXT - 2)
    assert prompted("[[say " + "a" * MAX_TEXT + "]]") is None
    assert prompted("[[say [[" * 100_000) is None


def test_failures() -> None:
    assert trigger_of(asking(Message("user", "x [[fail_after=12]]"))) == ("fail", 12)
    assert trigger_of(asking(Message("user", "[[crash]]"))) == ("crash", 0)
    assert trigger_of(asking(Message("user", "[[say x]]"))) is None
