"""Breaker, choice and trip: pure machines with time as an argument."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.engines import ENGINES
from penstock.backends.openai.replicas import Choice, Replica, Tier, choose
from penstock.backends.openai.trip import Patience, Trip, Wait
from penstock.backends.openai.trouble import (
    Trouble,
    cut,
    malformed,
    of_status,
    read_error,
    read_retry_after,
    timeout,
    unreachable,
)
from penstock.errors import BackendError, InvalidRequest, Overloaded, PenstockError

ANY = ENGINES["any"]


class BreakerMachine(RuleBasedStateMachine):
    """Requests begin and end in any order while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(max_failures=2, first_s=1.0, last_s=8.0)
        self.now = 0.0
        self.open: list[bool] = []

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        if self.breaker.may_begin(self.now):
            self.open.append(self.breaker.begin())

    @rule(how=st.sampled_from(["ok", "failed", "abandoned"]), which=st.integers(0, 9))
    def end(self, how: str, which: int) -> None:
        if not self.open:
            return
        is_trial = self.open.pop(which % len(self.open))
        if how == "ok":
            self.breaker.succeeded()
            assert self.breaker.may_begin(self.now)
        elif how == "failed":
            was_open, until = self.breaker.is_open, self.breaker.until
            self.breaker.failed(self.now, is_trial)
            if was_open and not is_trial:
                assert self.breaker.until == until, "late failures prolong nothing"
        else:
            self.breaker.abandoned(is_trial)

    @invariant()
    def it_is_open_for_a_bounded_time(self) -> None:
        assert self.breaker.until <= self.now + 8.0
        assert self.breaker.num_failures < 2

    @invariant()
    def it_lets_at_most_one_trial_through(self) -> None:
        if self.breaker.is_open:
            assert not (self.breaker.is_trying and self.breaker.may_begin(self.now))

    @invariant()
    def nothing_is_shut_for_ever(self) -> None:
        if not any(self.open):
            assert self.breaker.may_begin(self.now + 8.0)


TestBreakerMachine = BreakerMachine.TestCase


def test_a_breaker_opens_tries_and_closes() -> None:
    breaker = Breaker(max_failures=2, first_s=1.0, last_s=3.0)
    for _ in range(2):
        assert breaker.state(0) == "closed"
        breaker.failed(0.0, breaker.begin())
    assert (breaker.state(0.5), breaker.state(1.0)) == ("open", "half_open")
    for now, until in ((1.0, 3.0), (3.0, 6.0), (6.0, 9.0)):
        is_trial = breaker.begin()
        assert is_trial
        assert not breaker.may_begin(now), "one trial at a time"
        breaker.failed(now, is_trial)
        assert breaker.until == until
    breaker.begin()
    breaker.succeeded()
    assert (breaker.state(9.0), breaker.num_openings) == ("closed", 0)


def test_with_a_health_check_no_request_is_tried_before_it_passed() -> None:
    breaker = Breaker(max_failures=1, has_check=True)
    breaker.failed(0.0, breaker.begin())
    assert not breaker.wants_check(0.5)
    assert breaker.wants_check(1.0)
    assert not breaker.may_begin(100.0)
    breaker.check_failed(1.0)
    assert not breaker.wants_check(2.5)
    breaker.check_passed()
    assert breaker.state(3.0) == "half_open"


# ── choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def site(*sizes: int, slots: int | None = None) -> list[Tier]:
    return [
        Tier(number, [Replica(f"{number}{letter}", "", slots=slots) for letter in "abcdefgh"[:size]], ANY)
        for number, size in enumerate(sizes, 1)
    ]


replicas = st.builds(
    Replica,
    st.just("r"),
    st.just(""),
    st.builds(
        Breaker, is_open=st.booleans(), until=st.floats(0, 20), is_trying=st.booleans(), is_checked=st.booleans()
    ),
    st.none() | st.integers(1, 3),
    st.integers(0, 4),
    st.floats(0, 20),
    st.integers(0, 9),
)


@given(st.lists(st.lists(replicas, min_size=1, max_size=4), min_size=1, max_size=3), st.floats(0, 20))
def test_the_least_loaded_usable_replica_of_the_first_tier_that_has_one(
    groups: list[list[Replica]], now: float
) -> None:
    tiers = [Tier(number, group, ANY) for number, group in enumerate(groups, 1)]
    choice = choose(tiers, now)
    usable = [[one for one in group if one.hindrance(now) is None] for group in groups]
    if choice is None:
        assert not any(usable)
        return
    assert not any(usable[: choice.tier.number - 1])
    assert choice.replica.num_open == min(one.num_open for one in usable[choice.tier.number - 1])
    assert choose(tiers, now, {choice.replica}) != choice


@given(replicas, st.floats(0, 20))
def test_a_replica_is_usable_when_it_says_that_it_will_be(replica: Replica, now: float) -> None:
    at = replica.usable_at(now)
    if at is not None:
        assert replica.hindrance(at) is None
        assert (at == now) == (replica.hindrance(now) is None)


def test_equal_ones_take_turns() -> None:
    tiers, seen = site(3), []
    for turn in range(1, 7):
        choice = choose(tiers, 0.0)
        assert choice is not None
        choice.replica.turn = turn
        seen.append(choice.replica.name)
    assert seen == ["1a", "1b", "1c"] * 2


# ── trip ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def trip(tiers: list[Tier], deadline_at: float = math.inf, **patience: float) -> Trip:
    return Trip(tiers, Patience(**patience), 0.0, deadline_at, draw=lambda: 0.0)  # type: ignore[arg-type]


def go(one: Trip, now: float = 0.0) -> Choice:
    step = one.next(now)
    assert isinstance(step, Choice)
    return step


def fail(one: Trip, trouble: Trouble, now: float = 0.0) -> str:
    """Take the next step and fail there; where that was."""
    choice = go(one, now)
    one.failed(choice.replica, choice.tier, trouble, now)
    return choice.replica.name


def test_others_are_tried_at_once_and_the_same_after_a_pause() -> None:
    one = trip(site(2, 1))
    assert [fail(one, unreachable("x")) for _ in range(3)] == ["1a", "1b", "2a"]
    assert one.next(0.0) == Wait(0.25)
    assert fail(one, unreachable("x"), 0.25) == "1a"
    assert fail(one, unreachable("x"), 0.3) == "1b"
    assert fail(one, unreachable("x"), 0.3) == "2a"
    assert one.next(0.3) == Wait(0.75), "twice as long"


def test_everybody_has_a_turn_before_anybody_has_a_second() -> None:
    one = trip(site(1, 1, 1))
    assert [fail(one, timeout("x"), now) for now in (0.0, 60.0, 120.0)] == ["1a", "2a", "3a"]


def test_a_lower_tier_comes_with_the_reason_for_it() -> None:
    one = trip(site(1, 1, 1))
    fail(one, timeout("x"))
    choice = go(one)
    assert [(tier.number, why) for tier, why in one.passed_over(choice, 0.0)] == [(1, "timeout")]
    tiers = site(1, 1, 1)
    tiers[0].replicas[0].rests_until = 9.0
    tiers[1].replicas[0].breaker.check_failed(0.0)
    one = trip(tiers)
    passed = one.passed_over(go(one), 0.0)
    assert [(tier.number, why) for tier, why in passed] == [(1, "resting"), (2, "ejected")]


def test_what_may_have_cost_work_is_tried_only_so_often_in_each_tier() -> None:
    one = trip(site(9, 1))
    assert [fail(one, cut("x")) for _ in range(4)] == ["1a", "1b", "1c", "2a"]
    assert fail(one, cut("x"), 1.0) == fail(one, cut("x"), 2.0) == "2a"
    with pytest.raises(BackendError, match="broke off"):
        one.next(0.0)


def test_what_has_cost_nothing_is_tried_until_time_is_up() -> None:
    one, now, num = trip(site(1), retry_s=30.0), 0.0, 0
    while now < 30.0:
        fail(one, unreachable("x"), now)
        num += 1
        try:
            step = one.next(now)
        except BackendError:
            break
        assert isinstance(step, Wait)
        assert step.until is not None
        now = step.until
    assert 8 <= num <= 12
    assert 20 < now <= 30
    with pytest.raises(BackendError, match="cannot be reached"):
        one.next(now)


def test_the_jobs_own_fault_is_tried_nowhere_else() -> None:
    one = trip(site(2, 1))
    fail(one, of_status(400, None, b'{"error": {"message": "top_p?", "param": "top_p"}}', "m"))
    with pytest.raises(InvalidRequest, match=r"top_p\?") as caught:
        one.next(0.0)
    assert caught.value.param == "top_p"


def test_what_no_time_mends_is_tried_elsewhere_only() -> None:
    one = trip(site(1, 1))
    assert [fail(one, of_status(404, None, b"", "big")), fail(one, of_status(401, None, b"", "big"))] == ["1a", "2a"]
    with pytest.raises(BackendError, match="401"):
        one.next(0.0)


def test_retry_after_is_waited_for_unless_it_is_too_long() -> None:
    tiers = site(1)
    one = trip(tiers, retry_s=30.0)
    fail(one, of_status(429, "7", b"", "m"))
    tiers[0].replicas[0].rests_until = 7.0
    assert one.next(0.0) == Wait(7.0)
    late = trip(tiers, deadline_at=5.0)
    with pytest.raises(Overloaded) as caught:
        late.next(0.0)
    assert caught.value.retry_after_s == 7.0, "of another job's answer"


def test_a_full_replica_is_waited_for_without_limit_and_a_trial_until_patience_ends() -> None:
    tiers = site(1, slots=1)
    tiers[0].replicas[0].num_open = 1
    assert trip(tiers).next(100.0) == Wait(None)
    tiers = site(1)
    tiers[0].replicas[0].breaker.check_failed(0.0)
    tiers[0].replicas[0].breaker.begin()
    one = trip(tiers)
    assert one.next(1.0) == Wait(30.0)
    with pytest.raises(BackendError, match="at present"):
        one.next(30.0)


def test_one_job_charges_a_replica_once() -> None:
    one = trip(site(1), tries=9)
    choice = go(one)
    charged = [one.failed(choice.replica, choice.tier, cut("x"), float(now)) for now in range(4)]
    assert charged == [True, False, False, False]
    assert not trip(site(1)).failed(choice.replica, choice.tier, of_status(403, None, b"", "m"), 0.0)


def test_tokens_renew_the_patience() -> None:
    one = trip(site(1), tries=1, retry_s=10.0)
    choice = go(one)
    for now in (0.0, 100.0, 200.0):
        one.failed(choice.replica, choice.tier, cut("x"), now, num_tokens=5)
        assert isinstance(one.next(now + 1), Choice)


troubles = st.sampled_from(
    [
        unreachable("x"),
        cut("x"),
        timeout("x"),
        malformed("x"),
        *(of_status(s, None, b"", "m") for s in range(400, 600, 1)),
    ]
)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data(), st.floats(1, 60))
def test_a_trip_ends_in_time_and_waits_only_for_what_comes(
    sizes: list[int], data: st.DataObject, deadline: float
) -> None:
    one, now = trip(site(*sizes), deadline_at=deadline), 0.0
    for _ in range(2000):
        try:
            step = one.next(now)
        except PenstockError:
            return
        if isinstance(step, Wait):
            assert step.until is not None
            assert now < step.until <= min(30.0, deadline)
            now = step.until
        else:
            one.failed(step.replica, step.tier, data.draw(troubles), now)
    raise AssertionError("it never gave up")


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "reason", "again", "is_fault", "costs_try"),
    [
        (400, "invalid", "never", False, True),
        (422, "invalid", "never", False, True),
        (401, "credentials", "elsewhere", False, False),
        (403, "credentials", "elsewhere", False, False),
        (404, "not_found", "elsewhere", False, False),
        (402, "refused", "elsewhere", False, False),
        (302, "refused", "elsewhere", False, False),
        (408, "refused", "later", False, True),
        (429, "rate_limited", "later", False, False),
        (500, "server_error", "later", True, True),
        (503, "server_error", "later", True, False),
    ],
)
def test_what_a_status_means(status: int, reason: str, again: str, is_fault: bool, costs_try: bool) -> None:
    found = of_status(status, None, b"", "m")
    assert (found.reason, found.again, found.is_fault, found.costs_try) == (reason, again, is_fault, costs_try)
    assert found.error.message


def test_a_quota_that_is_used_up_is_not_waited_for() -> None:
    assert of_status(429, None, b'{"error": {"code": "insufficient_quota"}}', "m").again == "elsewhere"


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.integers(300, 599))
def test_no_body_breaks_it(body: bytes, status: int) -> None:
    assert isinstance(of_status(status, None, body, "m").error, PenstockError)


def test_a_key_is_in_no_message() -> None:
    body = b'{"error": {"message": "sk-1 is wrong\\u0000", "param": "sk-1", "code": "sk-1"}}'
    said = read_error(body, "sk-1")
    assert (said.message, said.param, said.code) == ("*** is wrong", "***", "***")
    assert read_error(b'{"error": "plain"}').message == "plain"
    assert read_error(b'{"message": "flat", "object": "error"}').message == "flat"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("nan", None), ("inf", None), ("soon", None), ("", None), (None, None),
        ("1e99", 86_400.0), ("Wed, 25 Nov 2026 12:00:10 GMT", 10.0), ("Wed, 25 Nov 2020 12:00:10 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value, datetime(2026, 11, 25, 12, tzinfo=UTC)) == seconds
