"""Checks without requests: an idle engine that is down is found out, and one that is back counts before its trial."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from penstock.backends import Backend
from penstock.backends.openai import Upstream as Server
from penstock.backends.openai import health
from penstock.backends.openai.breaker import Breaker
from penstock.backends.openai.health import Health
from penstock.backends.openai.http import UpstreamHttp
from penstock.backends.openai.options import build_tiers
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.upstreams import Upstreams
from penstock.fleet import Engines
from tests.support.asking import Watch, ask, is_whole, running
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "IDLE_S", 0.05)
    monkeypatch.setattr(health, "AGAIN_S", 0.05)


async def _sees(backend: Backend, num_up: int, num: int) -> None:
    await wait_until(lambda: backend.live_engines() == Engines(num_up, num), f"{num_up} of {num} engines up")


async def test_an_engine_that_is_down_is_found_out_without_a_request_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = Watch()
    async with Upstream() as up, running(up.url, watch, engine="vllm") as backend:
        await _sees(backend, 1, 1)
        assert watch.ups() == [1.0]
        up.health = 503
        await _sees(backend, 0, 1)
        assert watch.ups() == [1.0, 0.0]
        up.health = 200
        await _sees(backend, 1, 1)
        assert watch.ups() == [1.0, 0.0], "a request is its trial"
        up.health = 503
        await _sees(backend, 0, 1)
        up.health = 200
        await _sees(backend, 1, 1)
        assert up.seen == []
        assert is_whole(await ask(backend))
        assert watch.ups() == [1.0, 0.0, 1.0]
    (ejected,) = (vars(one) for one in caplog.records if one.message == "an upstream is ejected")
    assert (ejected["model"], ejected["upstream"]) == ("m", f"127.0.0.1:{up.port}")


async def test_each_replica_of_each_tier_counts() -> None:
    async with Upstream() as one, Upstream(health=503) as two, Upstream() as other:
        options = {"engine": "vllm", "upstreams.2.url": other.url, "upstreams.2.engine": "any"}
        async with running(f"{one.url}+{two.url}", **options) as backend:
            await _sees(backend, 2, 3)


class Scripted:
    """Stands for `UpstreamHttp`: what the checks answer, one after the other, and True behind them."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.num = 0

    async def is_well(self, tier: Tier, replica: Replica, path: str) -> bool:
        self.num += 1
        return self.answers.pop(0) if self.answers else True


@asynccontextmanager
async def checked(*answers: bool) -> AsyncIterator[tuple[Scripted, Replica]]:
    tiers = build_tiers((Server("http://h", engine="vllm"),), health="", max_failures=3, eject_s=30.0)
    http = Scripted(*answers)
    checks = Health(Upstreams(tiers, Watch()), cast(UpstreamHttp, http), None)
    checks.start()
    yield http, tiers[0].replicas[0]
    await checks.stop()


async def test_single_failures_between_good_checks_eject_nothing() -> None:
    async with checked(True, *(False, True) * 3) as (http, replica):
        await wait_until(lambda: http.num >= 8, "all checks")
        assert not replica.breaker.is_open


@pytest.mark.parametrize("answers", [(False,), (True, False, False)], ids=["the first one", "two in a row"])
async def test_failures_that_eject(answers: tuple[bool, ...]) -> None:
    async with checked(*answers) as (http, replica):
        await wait_until(lambda: replica.breaker.is_open, "it is ejected")
        assert http.num == len(answers)


@pytest.mark.parametrize(
    ("state", "due_at"),
    [
        ({}, 5 + health.IDLE_S),
        ({"num_misses": 1}, 5 + health.AGAIN_S),
        ({"num_open": 1}, math.inf),
        ({"num_open": 1, "num_misses": 1}, math.inf),
        ({"num_open": 1, "is_doubted": True}, 5 + health.AGAIN_S),
        ({"breaker": Breaker(is_open=True, is_checked=False, until=7.0)}, 7.0),
        ({"breaker": Breaker(is_open=True, is_checked=True, until=7.0)}, 5 + health.IDLE_S),
        ({"breaker": Breaker(is_open=True, is_checked=True, until=7.0), "num_open": 1}, math.inf),
    ],
)
def test_when_a_replica_is_checked_next(state: dict[str, Any], due_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert health.due_at(Replica("h", "http://h", known_at=5.0, **state)) == due_at


async def test_a_lone_engine_that_fails_all_requests_with_500_is_ejected_if_it_is_ill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "IDLE_S", 600.0)
    async with Upstream() as up, running(up.url, engine="vllm", tries="1", eject_s="30") as backend:
        await wait_until(lambda: up.num_checks == 1, "the first check")
        up.mood = "status=500"
        for _ in range(3):
            await ask(backend)
        await wait_until(lambda: up.num_checks >= 2, "a check")
        assert backend.live_engines() == Engines(1, 1), "the requests may be at fault"
        up.health = 503
        await ask(backend)
        await _sees(backend, 0, 1)


async def test_without_a_health_check_only_requests_tell() -> None:
    async with Upstream("drop") as up, running(up.url, max_failures="1", retry_s="0", eject_s="30") as backend:
        await _sees(backend, 1, 1)
        await ask(backend)
        await _sees(backend, 0, 1)
        assert up.num_checks == 0
