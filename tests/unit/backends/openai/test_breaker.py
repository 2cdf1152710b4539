"""The breaker of one replica: a pure machine with time as an argument."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.backends.openai.breaker import Breaker


class BreakerMachine(RuleBasedStateMachine):
    """Requests begin and end, and checks are made, in any order while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.open: list[bool] = []  # whether each open request is the trial
        self.num_failures = 0  # in a row, while it was closed

    @initialize(has_check=st.booleans())
    def make(self, has_check: bool) -> None:
        self.breaker = Breaker(max_failures=2, first_s=1.0, last_s=8.0, has_check=has_check)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.may_begin(self.now))
    @rule()
    def begin(self) -> None:
        if self.breaker.is_open:
            assert self.now >= self.breaker.until
            assert self.breaker.is_checked
        is_trial = self.breaker.begin()
        assert is_trial == self.breaker.is_open
        self.open.append(is_trial)

    @precondition(lambda self: self.open)
    @rule(how=st.sampled_from(["ok", "failed", "abandoned"]), which=st.integers(0, 9))
    def end(self, how: str, which: int) -> None:
        is_trial = self.open.pop(which % len(self.open))
        if how == "ok":
            self.breaker.succeeded()
            assert self.breaker.may_begin(self.now)
            self.open, self.num_failures = [False] * len(self.open), 0  # no replica is on trial any more
        elif how == "failed":
            was_open, until = self.breaker.is_open, self.breaker.until
            self.breaker.failed(self.now, is_trial)
            if was_open and not is_trial:
                assert self.breaker.until == until, "late failures prolong nothing"
            self.num_failures += not was_open
            assert self.breaker.is_open == (was_open or self.num_failures == 2)
            self.num_failures *= not self.breaker.is_open
        else:
            self.breaker.abandoned(is_trial)

    @precondition(lambda self: self.breaker.wants_check(self.now))
    @rule(is_well=st.booleans())
    def check(self, is_well: bool) -> None:
        if is_well:
            self.breaker.check_passed()
        else:
            self.breaker.check_failed(self.now)

    @invariant()
    def it_is_open_for_a_bounded_time(self) -> None:
        assert self.breaker.until <= self.now + 8.0
        assert self.breaker.num_failures < 2

    @invariant()
    def it_lets_at_most_one_trial_through(self) -> None:
        assert sum(self.open) <= 1
        if self.breaker.is_open:
            assert not (self.breaker.is_trying and self.breaker.may_begin(self.now))

    @invariant()
    def nothing_is_shut_for_ever(self) -> None:
        later = self.now + 8.0
        if not any(self.open):
            assert self.breaker.may_begin(later) or self.breaker.wants_check(later)


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


def test_late_and_abandoned_requests_do_not_change_a_breaker() -> None:
    breaker = Breaker(max_failures=1)
    breaker.failed(0.0, breaker.begin())
    breaker.failed(0.9, is_trial=False)
    assert breaker.until == 1.0, "a request from before the opening prolongs nothing"
    breaker.abandoned(breaker.begin())
    assert breaker.may_begin(1.0), "a trial that was given up makes room for the next"


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
