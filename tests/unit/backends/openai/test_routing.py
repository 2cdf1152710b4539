"""Which replica a job goes to, how long it waits and when it gives up: pure, with time as an argument."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.engines import ENGINES
from penstock.backends.openai.failures import UpstreamError, cut, malformed, of_status, timeout, unreachable
from penstock.backends.openai.replicas import PickedReplica, Replica, Tier, choose
from penstock.backends.openai.rests import MAX_CALLERS, Rests
from penstock.backends.openai.retries import RetryLimits, RetryPlan, Wait
from penstock.errors import BackendError, InvalidRequest, Overloaded, PenstockError

ANY = ENGINES["any"]


# ── choose ───────────────────────────────────────────────────────────────────────────────────────────────────────


def site(*sizes: int, slots: int | None = None) -> list[Tier]:
    return [
        Tier(number, [Replica(f"{number}{letter}", "", slots=slots) for letter in "abcdefgh"[:size]], ANY)
        for number, size in enumerate(sizes, 1)
    ]


def _resting(until: float) -> Rests:
    rests = Rests()
    rests.refused("", 0.0, until)
    return rests


replicas = st.builds(
    Replica,
    st.just("r"),
    st.just(""),
    st.builds(
        Breaker, is_open=st.booleans(), until=st.floats(0, 20), is_trying=st.booleans(), is_checked=st.booleans()
    ),
    st.none() | st.integers(1, 3),
    st.integers(0, 4),
    st.floats(0, 20).map(_resting),
    st.integers(0, 9),
)


sites = st.lists(st.lists(replicas, min_size=1, max_size=4), min_size=1, max_size=3).map(
    lambda groups: [Tier(number, group, ANY) for number, group in enumerate(groups, 1)]
)


@given(sites, st.floats(0, 20))
def test_the_least_loaded_usable_replica_of_the_first_tier_that_has_one(tiers: list[Tier], now: float) -> None:
    picked = choose(tiers, now)
    usable = [[one for one in tier.replicas if one.hindrance(now) is None] for tier in tiers]
    if picked is None:
        assert not any(usable)
        return
    assert not any(usable[: picked.tier.number - 1])
    assert picked.replica in usable[picked.tier.number - 1]
    assert picked.replica.num_open == min(one.num_open for one in usable[picked.tier.number - 1])
    assert choose(tiers, now, {picked.replica}) != picked


@given(replicas, st.floats(0, 20))
def test_a_replica_may_begin_at_usable_at(replica: Replica, now: float) -> None:
    at = replica.usable_at(now)
    if at is not None:
        assert replica.hindrance(at) is None
        assert (at == now) == (replica.hindrance(now) is None)


def test_equal_ones_take_turns() -> None:
    tiers, seen = site(3), []
    for turn in range(1, 7):
        picked = choose(tiers, 0.0)
        assert picked is not None
        picked.replica.turn = turn
        seen.append(picked.replica.name)
    assert seen == ["1a", "1b", "1c"] * 2
    tiers[0].replicas[0].num_open = 1
    assert choose(tiers, 0.0) == PickedReplica(tiers[0], tiers[0].replicas[1]), "load counts more than turns"


# ── retry plan ──────────────────────────────────────────────────────────────────────────────────────────────────


def plan(tiers: list[Tier], deadline_at: float = math.inf, **limits: float) -> RetryPlan:
    return RetryPlan(tiers, RetryLimits(**limits), 0.0, deadline_at, draw=lambda: 0.0)  # type: ignore[arg-type]


def go(one: RetryPlan, now: float = 0.0) -> PickedReplica:
    step = one.next(now)
    assert isinstance(step, PickedReplica)
    return step


def fail(one: RetryPlan, failure: UpstreamError, now: float = 0.0) -> str:
    """Take the next step and fail there; where that was."""
    picked = go(one, now)
    one.failed(picked.replica, picked.tier, failure, now)
    return picked.replica.name


def test_others_are_tried_at_once_and_the_same_after_a_pause() -> None:
    one = plan(site(2, 1))
    assert [fail(one, unreachable("x")) for _ in range(3)] == ["1a", "1b", "2a"]
    assert one.next(0.0) == Wait(0.25)
    assert fail(one, unreachable("x"), 0.25) == "1a"
    assert fail(one, unreachable("x"), 0.3) == "1b"
    assert fail(one, unreachable("x"), 0.3) == "2a"
    assert one.next(0.3) == Wait(0.75), "twice as long"


def test_everybody_has_a_turn_before_anybody_has_a_second() -> None:
    one = plan(site(1, 1, 1))
    assert [fail(one, timeout("x"), now) for now in (0.0, 60.0, 120.0)] == ["1a", "2a", "3a"]


def test_a_lower_tier_is_chosen_with_the_reason_for_it() -> None:
    one = plan(site(1, 1, 1))
    assert [fail(one, timeout("x")), fail(one, of_status(429, None, b"", "m"))] == ["1a", "2a"]
    passed = one.passed_over(go(one), 0.0)
    assert [(tier.number, why) for tier, why in passed] == [(1, "timeout"), (2, "rate_limited")]
    tiers = site(1, 1, 1)
    tiers[0].replicas[0].rests.refused("", 0.0, 9.0)
    tiers[1].replicas[0].breaker.check_failed(0.0)
    one = plan(tiers)
    passed = one.passed_over(go(one), 0.0)
    assert [(tier.number, why) for tier, why in passed] == [(1, "resting"), (2, "ejected")]


def test_a_failure_that_may_have_cost_work_is_retried_a_few_times_in_each_tier() -> None:
    one = plan(site(9, 1))
    assert [fail(one, cut("x")) for _ in range(4)] == ["1a", "1b", "1c", "2a"]
    assert fail(one, cut("x"), 1.0) == fail(one, cut("x"), 2.0) == "2a"
    with pytest.raises(BackendError, match="interrupted its answer"):
        one.next(0.0)


def test_a_failure_that_cost_nothing_is_retried_until_the_deadline() -> None:
    one, now, num = plan(site(1), retry_s=30.0), 0.0, 0
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
    one = plan(site(2, 1))
    fail(one, of_status(400, None, b'{"error": {"message": "top_p?", "param": "top_p"}}', "m"))
    with pytest.raises(InvalidRequest, match=r"top_p\?") as caught:
        one.next(0.0)
    assert caught.value.param == "top_p"


def test_a_permanent_failure_is_retried_only_at_another_replica() -> None:
    one = plan(site(1, 1))
    assert [fail(one, of_status(404, None, b"", "big")), fail(one, of_status(401, None, b"", "big"))] == ["1a", "2a"]
    with pytest.raises(BackendError, match="401"):
        one.next(0.0)


def test_retry_after_is_waited_for_unless_it_is_too_long() -> None:
    tiers = site(1)
    one = plan(tiers, retry_s=30.0)
    fail(one, of_status(429, "7", b"", "m"))
    tiers[0].replicas[0].rests.refused("", 0.0, 7.0)
    assert one.next(0.0) == Wait(7.0)
    late = plan(tiers, deadline_at=5.0)
    with pytest.raises(Overloaded) as caught:
        late.next(0.0)
    assert caught.value.retry_after_s == 7.0, "of another job's answer"


def test_one_callers_limit_binds_no_other() -> None:
    rests = Rests()
    rests.refused("a", 0.0, 50.0)
    rests.refused("a", 1.0, 9.0)
    assert (rests.until("a"), rests.until("b")) == (50.0, 0.0)
    rests.refused("b", 2.0, 20.0)
    assert (rests.until("b"), rests.until("c")) == (22.0, 22.0), "two callers: it is the replica's word, for as long"
    rests.answered("c")
    assert [rests.until(name) for name in "abc"] == [50.0, 22.0, 0.0], "it works for others"
    rests.refused("b", 3.0, 30.0)
    assert rests.until("c") == 0.0, "one caller since its last answer"
    rests.answered("a")
    assert rests.until("a") == 0.0


def test_a_refusal_of_long_ago_is_not_the_second_one() -> None:
    rests = Rests()
    rests.refused("a", 0.0, 5.0)
    rests.refused("b", 100.0, 50.0)
    assert rests.until("c") < 100.0


def test_memory_about_callers_is_bounded() -> None:
    rests = Rests()
    for number in range(3 * MAX_CALLERS):
        rests.refused(str(number), float(number), 60.0)
    assert len(rests._own) == len(rests._unanswered) == MAX_CALLERS


def test_a_full_replica_is_waited_for_without_limit_and_a_trial_until_patience_ends() -> None:
    tiers = site(1, slots=1)
    tiers[0].replicas[0].num_open = 1
    assert plan(tiers).next(100.0) == Wait(None)
    tiers = site(1)
    tiers[0].replicas[0].breaker.check_failed(0.0)
    tiers[0].replicas[0].breaker.begin()
    one = plan(tiers)
    assert one.next(1.0) == Wait(30.0)
    with pytest.raises(BackendError, match="available right now"):
        one.next(30.0)


def test_one_job_charges_a_replica_once() -> None:
    one = plan(site(1), tries=9)
    picked = go(one)
    charged = [one.failed(picked.replica, picked.tier, cut("x"), float(now)) for now in range(4)]
    assert charged == [True, False, False, False]
    assert not plan(site(1)).failed(picked.replica, picked.tier, of_status(403, None, b"", "m"), 0.0)


def test_a_request_that_every_replica_fails_alike_charges_none() -> None:
    one = plan(site(2), tries=4)
    for now in range(4):
        picked = go(one, float(now))
        assert not one.failed(picked.replica, picked.tier, of_status(500, None, b'"no images"', "m"), float(now))
    with pytest.raises(BackendError):
        one.next(100.0)


def test_a_replica_is_charged_once_another_answers_what_it_failed() -> None:
    one = plan(site(2))
    bad = go(one)
    assert not one.failed(bad.replica, bad.tier, of_status(500, None, b"", "m"), 0.0)
    good = go(one)
    assert good.replica is not bad.replica
    assert one.convicted(good.replica) == [(bad.replica, False)]
    assert one.convicted(good.replica) == [], "once for each job"
    assert not one.failed(bad.replica, bad.tier, of_status(500, None, b"", "m"), 1.0, is_trial=True)
    assert one.convicted(bad.replica) == [], "it has answered the request itself"


def test_a_slow_replica_is_left_only_for_one_that_was_not_asked_and_can_take_the_request() -> None:
    (tier,) = tiers = site(2, slots=1)
    slow, other = tier.replicas
    one = plan(tiers, tries=2)
    assert one.has_other(slow, tier, 0.0)
    other.num_open = 1
    assert not one.has_other(slow, tier, 0.0), "it is full"
    other.num_open = 0
    assert not plan(tiers, tries=1).has_other(slow, tier, 0.0), "the only try is used up"
    first, second = both = site(1, 1)
    assert plan(both, tries=1).has_other(first.replicas[0], first, 0.0), "another tier has tries of its own"
    assert not plan([second], tries=1).has_other(second.replicas[0], second, 0.0)
    one.failed(slow, tier, timeout("x"), 0.0)
    assert not one.has_other(other, tier, 60.0), "both were asked"


def test_tokens_renew_the_patience() -> None:
    one = plan(site(1), tries=1, retry_s=10.0)
    picked = go(one)
    for now in (0.0, 100.0, 200.0):
        one.failed(picked.replica, picked.tier, cut("x"), now, num_tokens=5)
        assert isinstance(one.next(now + 1), PickedReplica)
    one = plan(site(1), tries=2)
    for num_tokens in (0, 5, 0):
        one.failed(picked.replica, picked.tier, cut("x"), 0.0, num_tokens)
    assert isinstance(one.next(9.0), PickedReplica), "one of the two tries was before the tokens"


failures = st.sampled_from(
    [
        unreachable("x"),
        cut("x"),
        timeout("x"),
        malformed("x"),
        *(of_status(s, None, b"", "m") for s in range(400, 600, 1)),
    ]
)


@given(sites, st.data(), st.floats(0.1, 60))
def test_a_trip_ends_in_time_and_waits_only_for_what_comes(
    tiers: list[Tier], data: st.DataObject, deadline: float
) -> None:
    for tier in tiers:
        for replica in tier.replicas:
            replica.num_open = 0  # the only user: no wait is endless
    one, now, costly = plan(tiers, deadline_at=deadline), 0.0, Counter[int]()
    for _ in range(2000):
        try:
            step = one.next(now)
        except PenstockError:
            break
        if isinstance(step, Wait):
            assert step.until is not None
            assert now < step.until <= min(30.0, deadline)
            now = step.until
        else:
            assert step.replica.hindrance(now) is None
            failure = data.draw(failures)
            costly[step.tier.number] += failure.costs_try
            one.failed(step.replica, step.tier, failure, now)
    else:
        pytest.fail("it never gave up")
    assert all(num <= 3 for num in costly.values()), "in each tier"
