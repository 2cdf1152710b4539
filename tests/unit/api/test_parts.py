"""An answer in parts: when each begins and ends."""

from __future__ import annotations

from hypothesis import given

from penstock.api.parts import Part, Parts
from penstock.rich_token import Logprob, RichToken, Token, ToolCall, join
from tests.support.answers import TOKENS


class Told(Parts):
    """Tells changes in words."""

    def opened(self, part: Part) -> list[bytes]:
        return [f"+{part.kind}{part.index}".encode()]

    def grown(self, part: Part, text: str, logprobs: tuple[Logprob, ...]) -> list[bytes]:
        return [f"{part.index}:{text}".encode()]

    def closed(self, part: Part, *, is_complete: bool) -> list[bytes]:
        return [f"-{part.index}{'' if is_complete else '!'}".encode()]


def _told(*tokens: Token, is_complete: bool = True) -> str:
    parts = Told("r")
    return b" ".join(parts.all_of(tokens) + parts.finish(is_complete=is_complete)).decode()


def _call(index: int, arguments: str = "", name: str = "") -> RichToken:
    return RichToken(tool_calls=(ToolCall(index, "", name, arguments),))


def test_a_part_ends_where_another_begins() -> None:
    assert _told("a", "b") == "+text0 0:a 0:b -0"
    assert _told(RichToken(reasoning="h"), "a", is_complete=False) == "+reasoning0 0:h -0 +text1 1:a -1!"
    assert _told(RichToken("a", reasoning="h")) == "+reasoning0 0:h -0 +text1 1:a -1"
    assert _told("a", _call(0, "{}", "f"), "b") == "+text0 0:a -0 +call1 1:{} -1 +text2 2:b -2"


def test_calls_written_side_by_side_stay_open_until_they_are_whole() -> None:
    side_by_side = _told(_call(0, '{"a"', "f"), _call(1, "{}", "g"), _call(0, ":1}"), "x")
    assert side_by_side == '+call0 0:{"a" +call1 1:{} -1 0::1} -0 +text2 2:x -2'
    assert _told(_call(0, "", "f"), _call(1, "", "g")) == "+call0 +call1 -0 -1"


def test_a_late_part_of_a_call_is_reported_too() -> None:
    assert _told(_call(0, "{}", "f"), "a", _call(0, " ")) == "+call0 0:{} -0 +text1 1:a -1 0: "


def test_a_call_without_an_id_gets_one() -> None:
    parts = Told("r")
    parts.token(RichToken(tool_calls=(ToolCall(2, "", "f"),)))
    assert parts.calls() == (ToolCall(0, "call_r_2", "f"),)


def test_a_token_without_text_but_with_a_probability_is_text() -> None:
    parts = Told("r")
    assert parts.token(RichToken(logprobs=(Logprob("\N{REPLACEMENT CHARACTER}", -1.0),))) == [b"+text0", b"0:"]


@given(TOKENS)
def test_nothing_is_lost(tokens: list[Token]) -> None:
    parts = Told("r")
    parts.all_of(tokens)
    whole = join(tokens)
    assert parts.text() == whole.text
    assert "".join(part.text for part in parts.parts if part.kind == "reasoning") == whole.reasoning
    said = {call.arguments for call in whole.tool_calls}
    assert {call.arguments for call in parts.calls()} == said
    assert [part.index for part in parts.parts] == list(range(len(parts.parts)))
