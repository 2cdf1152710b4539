"""A slow first token: left for another replica, or waited for; never asked for twice at one replica."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from penstock.backends.base import Backend
from penstock.backends.openai.first_token import FirstToken, Patience
from penstock.backends.openai.retries import RetryPlan
from penstock.job import Claim
from tests.support.asking import ask, claim, failed_of, is_whole, running
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until


async def test_a_limit_begins_anew_while_there_is_no_other_replica() -> None:
    asked: list[float] = []

    def has_other() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    limit = FirstToken(0.02, Patience(has_other))
    with pytest.raises(TimeoutError), limit:
        await asyncio.Event().wait()
    assert len(asked) == 3
    assert "(first_token_s)" in str(limit)


async def test_the_deadline_ends_it_anyway() -> None:
    limit = FirstToken(0.02, Patience(lambda: False, time.monotonic() + 0.05))
    with pytest.raises(TimeoutError), limit:
        await asyncio.Event().wait()


async def test_after_the_first_token_it_is_a_limit_like_any_other() -> None:
    limit = FirstToken(60.0, Patience(lambda: False))
    limit.has_begun = True
    limit.until = time.monotonic() + 0.02
    with pytest.raises(TimeoutError), limit:
        await asyncio.Event().wait()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What came of each look for another replica."""
    seen: list[bool] = []
    has_other = RetryPlan.has_other

    def look(self: RetryPlan, *where: Any) -> bool:
        seen.append(has_other(self, *where))
        return seen[-1]

    monkeypatch.setattr(RetryPlan, "has_other", look)
    return seen


async def _waits(backend: Backend, one: Claim, up: Upstream, looks: list[bool]) -> None:
    """The request still waits after the time of a first token has passed three times, and was sent once."""
    asking = asyncio.create_task(ask(backend, one))
    await wait_until(lambda: up.num_open == 1, "the request to arrive")
    await wait_until(lambda: len(looks) >= 3, "its time to have passed three times")
    assert not asking.done()
    one.cancel("client")
    await asking
    assert len(up.seen) == 1


async def test_a_slow_engine_without_another_is_asked_once(looks: list[bool]) -> None:
    async with Upstream("hang") as up, running(up.url, first_token_s="0.05", tries="3") as backend:
        await _waits(backend, claim(), up, looks)


async def test_its_deadline_ends_the_wait() -> None:
    async with Upstream("hang") as up, running(up.url, first_token_s="0.05") as backend:
        error = failed_of(await ask(backend, claim(timeout_s=0.5)))
    assert error.code == "backend_error"
    assert "(first_token_s)" in error.message
    assert len(up.seen) == 1


async def test_of_two_slow_engines_each_is_asked_once(looks: list[bool]) -> None:
    async with Upstream("hang") as one, Upstream("hang") as two:
        async with running(f"{one.url}+{two.url}", first_token_s="0.05", tries="3") as backend:
            job = claim()
            asking = asyncio.create_task(ask(backend, job))
            await wait_until(lambda: len(one.seen) == len(two.seen) == 1, "both to be asked")
            await wait_until(lambda: len(looks) >= 4, "its time to have passed at the second, again and again")
            job.cancel("client")
            await asking
        assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_inputs_to_embed_wait_as_well(looks: list[bool]) -> None:
    async with Upstream("hang") as up, running(up.url, task="embed", first_token_s="0.05") as backend:
        await _waits(backend, claim(inputs=("a",)), up, looks)


async def test_a_first_token_that_comes_late_is_an_answer() -> None:
    async with Upstream(token_s=0.2) as up, running(up.url, first_token_s="0.05") as backend:
        assert is_whole(await ask(backend))
    assert len(up.seen) == 1
