"""Regular expressions of schemas: texts for them, and a matching that no pattern can make slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.mock.schema.draw import Draw
from penstock.backends.mock.schema.keywords import Root, Unwritable
from penstock.backends.mock.schema.pattern import Pattern

COMMON = [
    r"^[A-Z]{2}\d{4}$",
    r"^\+?[1-9]\d{1,14}$",
    r"^[a-z0-9]+(?:-[a-z0-9]+)*$",
    r"^(\d{1,3}\.){3}\d{1,3}$",
    r"^#[0-9a-fA-F]{6}$",
    r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
    r"^\d{4}-(0[1-9]|1[0-2])-\d\d$",
    r"[\w.-]+/[^/]*",
    r"^(?!x)[xy]{3}$",
    r"^\u0041\x42\.\-\/$",
    r"\bcat\b",
    r"^.{3,5}?$",
    r"^[]$|a",
    r"^(?<year>\d{4})$",
    r"",
    r"^$",
]


def matches(pattern: str, text: str) -> bool:
    return Pattern(pattern).matches(text, Root(None))


@pytest.mark.parametrize("pattern", [each for each in COMMON if each != "^[]$|a"])
def test_texts_that_are_written_match(pattern: str) -> None:
    known = Pattern(pattern)
    for key in range(50):
        text = known.written(Draw(key), Root(None), lambda text: known.matches(text, Root(None)))
        assert re.search(pattern.replace("(?<year>", "(?P<year>"), text), text


tree = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "^", "$", r"\b", r"\S"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        inner.map(lambda it: f"(?={it})"),
        inner.map(lambda it: f"(?!{it})"),
    ),
    max_leaves=8,
)


@given(tree, st.text("ab1 ", max_size=6))
def test_it_matches_what_python_matches(pattern: str, text: str) -> None:
    assert matches(pattern, text) == bool(re.search(pattern, text, re.ASCII))


@given(st.text(r"ab1()[]{}|*+?^$\.-,:=!<>dwu0", max_size=12))
def test_any_text_is_a_pattern_or_is_refused(pattern: str) -> None:
    try:
        known = Pattern(pattern)
        text = known.written(Draw(1), Root(None), lambda text: known.matches(text, Root(None)))
    except Unwritable:
        return
    assert known.matches(text, Root(None))


@pytest.mark.parametrize("pattern", ["(a|a)*$", "(a*)*b", "(a+)+$", "(?:a?){40}a{40}c"])
def test_a_pattern_that_is_slow_elsewhere_is_not_slow_here(pattern: str) -> None:
    assert not matches(f"^{pattern}", "a" * 60 + "!")


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"\p{L}", "(?<=a)b", "(", ")", "a**", "[b-a]", "a{2,1}", "x" * 1001, r"\ud800", "(" * 50]
)
def test_what_is_not_supported_is_refused(pattern: str) -> None:
    with pytest.raises(Unwritable):
        Pattern(pattern)


def test_texts_are_as_long_as_asked() -> None:
    known = Pattern("^[a-z]+$")
    assert 40 <= len(known.written(Draw(1), Root(None), lambda text: len(text) >= 40)) <= 200
    with pytest.raises(Unwritable, match="no text"):
        known.written(Draw(1), Root(None), lambda text: len(text) > 10_000)
    with pytest.raises(Unwritable, match="too long"):
        Pattern("^(a{1000}){1000}$").written(Draw(1), Root(None), lambda text: True)
