"""What a gateway remembers of ended requests is bounded in number and in bytes, and the oldest give way."""

from __future__ import annotations

import pytest

from penstock.gateway.relay import RelayStream, ended
from penstock.gateway.relay.ended import Ended
from penstock.job import Job
from penstock.rich_token import RichToken, Token

NOW, LATER = 0.0, 100.0


def stream(name: str, *tokens: Token, prompt: str = "x") -> RelayStream:
    made = RelayStream(Job(id=name, model="mock", prompt=prompt), None, NOW)
    made.tokens += tokens
    return made


def kept(room: Ended) -> set[str]:
    return set(room.ids(NOW))


def test_the_oldest_give_way_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "MAX_KEPT", 3)
    room = Ended()
    for number in range(5):
        room.keep(stream(f"g.{number}"), LATER)
    assert room.ids(NOW) == ["g.4", "g.3", "g.2"]


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(("x" * 1000,) * 100, id="text"),
        pytest.param((RichToken("x" * 1000),) * 100, id="rich tokens"),
        pytest.param((*("x" * 1000,) * 99, RichToken("x")), id="text and a rich token"),
    ],
)
def test_the_oldest_give_way_when_they_are_too_large(
    tokens: tuple[Token, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has 100 kB of text, and takes twice that as rich tokens: five do not fit into half a megabyte."""
    monkeypatch.setattr(ended, "MAX_KEPT_BYTES", 500_000)
    room = Ended()
    for number in range(10):
        room.keep(stream(f"g.{number}", *tokens), LATER)
    num = len(kept(room))
    assert 2 <= num <= 4
    assert kept(room) == {f"g.{number}" for number in range(10 - num, 10)}


def test_many_tokens_and_a_long_prompt_take_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "MAX_KEPT_BYTES", 150_000)
    room = Ended()
    for number in range(4):
        room.keep(stream(f"g.{number}", *("",) * 1000), LATER)
    assert len(kept(room)) == 2
    room.keep(stream("g.long", prompt="x" * 120_000), LATER)
    assert kept(room) == {"g.long"}


def test_delivered_answers_displace_no_undelivered_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "MAX_DELIVERED", 2)
    room = Ended()
    for number in range(6):
        room.keep(stream(f"g.{number}"), LATER)
        if number:
            room.delivered(f"g.{number}", LATER)
    assert room.ids(NOW) == ["g.0", "g.5", "g.4"]
    assert not room.is_delivered("g.0")
    assert room.is_delivered("g.5")
    room.expire(LATER)
    assert room.get("g.0", NOW) is None
