"""The gate: who a caller is, how often they may ask, what they are told when it is too much."""

from __future__ import annotations

import asyncio
import ipaddress
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.api.intake import check_capabilities
from penstock.callers.keys import KeyRing, create_key
from penstock.errors import (
    DeadlineUnreachable,
    Draining,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    NoWorkers,
    QueueFull,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    UnsupportedParameter,
)
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Admission, Caller
from penstock.gateway.pool import MIN_LOOK_S, DrainRate, PoolView
from penstock.job import Sampling
from penstock.transports.base import RateLimit, Verdict
from penstock.transports.memory import MemoryTransport

WORKER = WorkerInfo(id="w1", models={"a": Capabilities(), "b": Capabilities()}, num_slots=8, num_free=8)


class Away(MemoryTransport):
    """A store that cannot be asked."""

    async def charge(self, key: str, limit: RateLimit, cost: int = 1) -> Verdict:
        raise StoreUnavailable("Redis is away.")


def gate(**fields: Any) -> Admission:
    return Admission(fields.pop("transport", None) or MemoryTransport(), PoolView(), **fields)


def busy(depth: int, per_s: float) -> Admission:
    """One whose queue has been seen to drain."""
    admission = gate()
    admission.pool.look(Pool(depth=depth, workers=(WORKER,), num_taken=0))
    admission.pool.drain_rate.per_s = per_s
    return admission


# ── how much ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_counts_as_the_work_that_it_is() -> None:
    admission, one = gate(rate_limit=RateLimit(60, 16)), Caller("", "203.0.113.1")
    assert (await admission.charge(one))["x-ratelimit-remaining-requests"] == "15"
    assert (await admission.charge(one, 6, charged=1))["x-ratelimit-remaining-requests"] == "10"
    assert await admission.charge(one, 1, charged=1) == {}
    with pytest.raises(RateLimited, match="counts as 16") as caught:
        await admission.charge(one, 16, charged=1)
    assert caught.value.retry_after_s == pytest.approx(
        5.0, abs=0.5
    )  # five are missing; the one that counted comes back
    assert caught.value.headers == {}, "they would not be true any more"
    assert (await admission.refund(one, 1))["x-ratelimit-remaining-requests"] == "11"
    assert (await admission.charge(one))["x-ratelimit-remaining-requests"] == "10"
    assert (await admission.charge(one))["x-ratelimit-remaining-requests"] == "9"  # refused ones cost nothing


async def test_a_request_above_the_burst_gets_advice() -> None:
    admission = gate(rate_limit=RateLimit(60, 10))
    with pytest.raises(InvalidRequest, match=r"counts as 16.*At most 10.*PENSTOCK_RATE_LIMIT_BURST"):
        await admission.charge(Caller("", "203.0.113.1"), 16, charged=1)


async def test_work_is_counted_while_the_store_is_away() -> None:
    admission, one = gate(transport=Away(), rate_limit=RateLimit(60, 10)), Caller("", "203.0.113.1")
    assert (await admission.charge(one, 8))["x-ratelimit-remaining-requests"] == "2"
    assert (await admission.refund(one, 8))["x-ratelimit-remaining-requests"] == "10"
    assert await gate().refund(one, 8) == {}, "without a limit there is nothing to give back"


# ── who ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # no proxy of ours wrote it
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # what the client itself wrote stands to the left
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", " , ", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),  # some proxies write the port as well
        ("10.0.0.1", "6.6.6.6, 198.51.100.1:4711, 10.0.0.2:80", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8:1:2:ffff::1]:80", "2001:db8:1:2::/64"),
        ("10.0.0.1", "[2001:db8:1:2:ffff::1]", "2001:db8:1:2::/64"),
        ("10.0.0.1", "fe80::1%eth0", "fe80::/64"),
        ("10.0.0.1", "not an address", "unknown"),
        ("10.0.0.1", "198.51.100.1" + ", 10.0.0.2" * 31, "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1" + ", 10.0.0.2" * 5000, "10.0.0.2"),  # the nearest ones only
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("10.0.0.1", "2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", None, "203.0.113.7"),
        ("", None, "unknown"),
    ],
)
def test_an_address_is_believed_from_our_own_proxies_only(peer: str, forwarded: str | None, address: str) -> None:
    caller = gate(trusted_proxies=[ipaddress.ip_network("10.0.0.0/8")]).identify(None, peer, forwarded)
    assert (caller.id, caller.address, caller.rate_key) == ("", address, f"ip:{address}")


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_is_sent_as_an_address_makes_a_short_key(peer: str, forwarded: str) -> None:
    caller = gate(trusted_proxies=[ipaddress.ip_network("0.0.0.0/0")]).identify(None, peer, forwarded)
    assert len(caller.rate_key) <= len("ip:") + 43
    assert caller.rate_key.isascii()


def test_limits_count_by_a_key_that_was_verified(tmp_path: Path) -> None:
    key, text = create_key(tmp_path / "keys.toml", "Ada")
    admission = gate(keys=KeyRing(tmp_path / "keys.toml"))
    assert admission.identify(text, "203.0.113.7", None).rate_key == f"key:{key.id}"
    for wrong in (None, "", f"{key.id}.guessed", key.id):
        with pytest.raises(Unauthorized) as refused:
            admission.identify(wrong, "203.0.113.7", None)
        assert refused.value.headers == {"www-authenticate": 'Bearer realm="penstock"'}


def test_without_keys_a_token_gives_no_identity() -> None:
    admission = gate()
    assert admission.identify("anything", "203.0.113.7", None) == admission.identify(None, "203.0.113.7", None)


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", [MemoryTransport, Away])
async def test_a_limit_holds_also_while_the_store_is_away(transport: type[MemoryTransport]) -> None:
    admission = gate(transport=transport(), rate_limit=RateLimit(rpm=60, burst=3))
    one, other = Caller("", "203.0.113.7"), Caller("", "203.0.113.8")
    remaining = [(await admission.charge(one))["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert remaining == ["2", "1", "0"]
    with pytest.raises(RateLimited) as refused:
        await admission.charge(one)
    assert 0 < (refused.value.retry_after_s or 0) <= 1
    assert refused.value.headers["x-ratelimit-limit-requests"] == "60"
    assert (await admission.charge(other))["x-ratelimit-remaining-requests"] == "2"


async def test_local_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.gateway.admission._MAX_LOCAL_KEYS", 10)
    admission = gate(transport=Away(), rate_limit=RateLimit(rpm=60, burst=3))
    for number in range(50):
        await admission.charge(Caller("", f"203.0.113.{number}"))
    assert len(admission._local_tats) == 10


async def test_a_key_may_have_a_limit_of_its_own_or_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    texts = [create_key(path, name, rpm=rpm)[1] for name, rpm in (("usual", None), ("own", 12), ("free", 0))]
    admission = gate(keys=KeyRing(path), rate_limit=RateLimit(rpm=60, burst=3))
    limits = [admission.limit_of(admission.identify(text, "", None)) for text in texts]
    assert limits == [RateLimit(60, 3), RateLimit(12, 2), None]
    assert await admission.charge(admission.identify(texts[2], "", None)) == {}


# ── for what ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_permit_is_given_back_once() -> None:
    admission = gate()
    admission.pool.look(Pool(depth=0, workers=(WORKER,)))
    permit = await admission.admit(Caller("", "203.0.113.7"))
    assert admission.num_inside == 1
    permit.release()
    permit.release()
    assert admission.num_inside == 0


async def test_a_first_worker_is_waited_for_by_so_many() -> None:
    admission = gate(no_worker_grace_s=5.0, max_waiting=1)
    admission.pool.look(Pool(depth=0))
    first = asyncio.create_task(admission.admit(Caller("", "a")))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await admission.admit(Caller("", "b"))
    admission.pool.look(Pool(depth=0, workers=(WORKER,)))
    (await first).release()


async def test_no_worker_and_no_store_are_different_errors() -> None:
    admission = gate(no_worker_grace_s=0.02)
    with pytest.raises(StoreUnavailable):
        await admission.admit(Caller("", "a"))
    admission.pool.look(Pool(depth=0))
    with pytest.raises(NoWorkers) as refused:
        await admission.admit(Caller("", "a"))
    assert refused.value.retry_after_s == 0.02
    (await admission.admit(Caller("", "a"), needs_worker=False)).release()
    admission.is_draining = True
    with pytest.raises(Draining):
        await admission.admit(Caller("", "a"), needs_worker=False)


def test_a_model_is_chosen_among_those_that_a_caller_may_use(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    only_b, _ = create_key(path, "B", models=["b"])
    only_c, _ = create_key(path, "C", models=["c"])
    admission = gate()
    admission.pool.look(Pool(depth=0, workers=(WORKER,)))
    anybody = Caller("", "x")
    assert [admission.choose_model(name, anybody)[0] for name in (None, "b")] == ["a", "b"]
    assert admission.choose_model(None, Caller("B", "x", only_b))[0] == "b"
    with pytest.raises(ModelNotAllowed):
        admission.choose_model("a", Caller("B", "x", only_b))
    with pytest.raises(ModelNotAllowed):
        admission.choose_model(None, Caller("C", "x", only_c))
    with pytest.raises(ModelNotFound, match="served: a, b"):
        admission.choose_model("zzz", anybody)


def test_an_error_names_no_model_that_the_key_may_not_use(tmp_path: Path) -> None:
    key, _ = create_key(tmp_path / "keys.toml", "B", models=["b", "gone"])
    admission = gate()
    admission.pool.look(Pool(depth=0, workers=(WORKER,)))
    with pytest.raises(ModelNotFound) as refused:
        admission.choose_model("gone", Caller("B", "x", key))
    assert refused.value.message == "Unknown model 'gone'; served: b."
    many = WorkerInfo(
        id="w2", models={f"m{number:03}": Capabilities() for number in range(100)}, num_slots=1, num_free=1
    )
    admission.pool.look(Pool(depth=0, workers=(many,)))
    with pytest.raises(ModelNotFound, match=r"served: m000, m001, .*, m019 and 80 more\.$"):
        admission.choose_model("zzz", Caller("", "x"))


def test_an_ability_that_a_backend_lacks_is_refused_by_name() -> None:
    can = Capabilities(accepts=("seed",), max_tokens=10)
    check_capabilities(Sampling(max_tokens=10, seed=1), "m", can)
    for sampling, param in ((Sampling(temperature=0.5), "temperature"), (Sampling(max_tokens=11), "max_tokens")):
        with pytest.raises(UnsupportedParameter) as refused:
            check_capabilities(sampling, "m", can)
        assert refused.value.param == param


# ── when to come back ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    admission = busy(depth=100, per_s=10.0)
    admission.judge_deadline(10.5)
    with pytest.raises(DeadlineUnreachable) as refused:
        admission.judge_deadline(4.0)
    assert (refused.value.param, refused.value.retry_after_s) == ("timeout_s", 6.0)
    gate().judge_deadline(0.001)  # nothing is known yet: nothing is refused


def test_come_back_when_a_tenth_of_the_queue_has_drained() -> None:
    for _ in range(20):
        assert 20.0 <= busy(depth=1000, per_s=5.0).retry_after_s() <= 26.0
        assert 1.0 <= busy(depth=1, per_s=500.0).retry_after_s() <= 1.3
        assert 120.0 <= busy(depth=10**9, per_s=1.0).retry_after_s() <= 156.0


def test_the_drain_rate_counts_times_with_a_waiting_request_only() -> None:
    rate = DrainRate()
    rate.observe(0, 100, 0.0)
    assert rate.wait_s(10) is None
    rate.observe(10, 90, 1.0)
    assert rate.per_s == 10.0
    rate.observe(20, 0, 2.0)
    for second in range(3, 60):  # the queue is empty: idle does not mean slow
        rate.observe(20, 0, float(second))
    assert rate.per_s == 10.0
    rate.observe(0, 5, 60.0)  # the store has forgotten its counts
    assert rate.wait_s(20) == 2.0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.floats(0.001, 5.0)), max_size=40))
@example([(0, 1, 1.0), (334, 0, 0.03125), (1000, 0, 0.03125)])  # two short looks make one long enough
def test_a_drain_rate_is_never_negative_or_above_the_measured_one(looks: list[tuple[int, int, float]]) -> None:
    rate, now, taken = DrainRate(), 0.0, 0
    seen: list[tuple[float, int]] = []
    for more, depth, elapsed in looks:
        now, taken = now + elapsed, taken + more
        rate.observe(taken, depth, now)
        seen.append((now, taken))
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in combinations(seen, 2)]
    fastest = max((num / length for length, num in spans if length >= MIN_LOOK_S), default=0.0)
    assert 0.0 <= rate.per_s <= fastest * (1 + 1e-9)
