"""A stream folds in the usual token by a short way: it is the long way's result, and no other event takes it."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

from hypothesis import event as count
from hypothesis import given
from hypothesis import strategies as st

from penstock.event import Event, Tokens
from penstock.gateway.relay.repair import Repairer
from penstock.gateway.relay.stream import RelayStream
from penstock.job import Job

JOB = Job(id="g.1", model="m", prompt="x")


class Meter:
    def __init__(self) -> None:
        self.observed: list[Event] = []

    def observe(self, event: Event, now: float) -> None:
        self.observed.append(event)

    def leave(self) -> None:
        raise AssertionError("no client leaves")

    def drop(self) -> None:
        raise AssertionError("the stream is kept")


class Wakes:
    """A reader that counts how often it is woken."""

    def __init__(self, *, is_for_end: bool) -> None:
        self.is_for_end = is_for_end
        self.num = 0

    def wake(self) -> None:
        self.num += 1


def _stream(have: int, attempt: int, *, is_trusted: bool, is_reading: bool) -> RelayStream:
    stream = RelayStream(JOB, Meter(), 0.0)
    stream.tokens = [f"t{index}" for index in range(have)]
    stream.attempt, stream.is_trusted, stream.num_asked = attempt, is_trusted, 2
    stream.waiting_frames = deque() if is_reading else None
    stream.readers = cast(Any, [Wakes(is_for_end=False), Wakes(is_for_end=True)])
    return stream


def _state(stream: RelayStream) -> tuple[object, ...]:
    wakes = [reader.num for reader in cast(list[Wakes], stream.readers)]
    observed = cast(Meter, stream.meter).observed
    return stream.tokens, stream.attempt, stream.num_asked, stream.end, stream.waiting_frames, wakes, observed


def _never(*args: object) -> Any:
    raise AssertionError(f"not for a usual token: {args}")


LONG_WAY = Repairer("g", cast(Any, None), cast(Any, None), _never, _never, _never, lambda: 0)
MOSTLY = st.sampled_from([True] * 5 + [False])
NEAR = st.sampled_from([0] * 5 + [-1, 1])


@given(st.integers(0, 3), NEAR, NEAR, MOSTLY, MOSTLY, st.lists(st.text(max_size=3), min_size=1, max_size=3))
def test_take_is_what_the_repairer_makes_of_the_next_tokens_or_nothing(
    have: int, seq_off: int, attempt_off: int, is_trusted: bool, is_idle: bool, tokens: list[str]
) -> None:
    fast, slow = (_stream(have, 2, is_trusted=is_trusted, is_reading=not is_idle) for _ in range(2))
    event = Tokens(JOB.id, 2 + attempt_off, max(0, have + seq_off), tokens=tuple(tokens))
    is_taken = fast.take(event)
    count(f"taken: {is_taken}")
    if is_taken:
        assert (event.seq, event.attempt, is_trusted, is_idle) == (have, 2, True, True)
        LONG_WAY.on_event(slow, event)
        assert fast.heard_at > 0.0
    assert _state(fast) == _state(slow)
