"""Stop strings: the outcome must not depend on how the text is cut into tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.stop import StopMatcher
from penstock.rich_token import text_of


def run(stops: list[str], tokens: list[str]) -> tuple[list[str], bool]:
    matcher, out = StopMatcher(stops), list[str]()
    for token in tokens:
        released, is_stopped = matcher.push(token)
        out += map(text_of, released)
        if is_stopped:
            return out, True
    return [*out, *map(text_of, matcher.flush())], False


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: the first moment at which some stop string is complete; the longest of those complete then."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def test_a_match_across_tokens_is_cut_and_held_tokens_stay_whole() -> None:
    assert run(["END"], ["one ", "E", "ND two"]) == (["one "], True)
    assert run(["END"], ["oneE", "N", "o"]) == (["oneE", "N", "o"], False)
    assert run(["END"], ["a bEN", "D"]) == (["a b"], True)


def test_text_that_may_become_a_stop_string_is_held_back_until_decided() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xab") == ([], False)
    assert matcher.push("d") == (["xab", "d"], False)
    assert matcher.push("ab") == ([], False)
    assert matcher.push("ab") == (["ab"], False)
    assert matcher.push("c!") == ([], True)


def test_without_stop_strings_everything_passes() -> None:
    assert run([], ["a", "b"]) == (["a", "b"], False)
    assert run([""], ["a"]) == (["a"], False)


@given(
    st.lists(st.text("ab", max_size=4), max_size=4),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=8),
)
def test_any_split_gives_the_same_text(stops: list[str], tokens: list[str]) -> None:
    out, is_stopped = run(stops, tokens)
    assert ("".join(out), is_stopped) == cut_at_first_stop("".join(tokens), stops)
    assert out[: len(out) - 1] == tokens[: max(0, len(out) - 1)], "only the last token may be cut"
    assert all(out)
