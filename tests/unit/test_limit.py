"""`Limit`: what `asyncio.timeout` promises, over many blocks, with one timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.limit import Limit
from tests.support.waiting import wait_until


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Every timer that was set."""
    loop = asyncio.get_running_loop()
    found: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def noted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        found.append(call_later(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(loop, "call_later", noted)
    return found


@pytest.fixture
async def limit() -> AsyncIterator[Limit]:
    made = Limit(time.monotonic() + 30.0)
    yield made
    made.close()


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_many_blocks_cost_one_timer_that_does_not_stay(timers: list[asyncio.TimerHandle]) -> None:
    limit = Limit(time.monotonic() + 30.0)
    for later in range(100):
        with limit:
            await asyncio.sleep(0)
        limit.until = time.monotonic() + 30.0 + later
    assert len(timers) == 1
    assert not timers[0].cancelled()
    limit.close()
    assert timers[0].cancelled()


async def test_a_wait_that_takes_too_long_is_cut_off_and_the_task_continues() -> None:
    limit = Limit(time.monotonic() + 0.02)
    with pytest.raises(TimeoutError), limit:
        await _for_ever()
    assert (task := asyncio.current_task()) is not None
    assert task.cancelling() == 0
    limit.until = time.monotonic() + 30.0
    with limit:
        await asyncio.sleep(0)
    limit.close()


async def test_a_limit_that_has_passed_cuts_off_a_wait() -> None:
    limit = Limit(time.monotonic() - 1.0)
    with limit:
        pass  # nothing waits
    with pytest.raises(TimeoutError), limit:
        await _for_ever()


async def test_between_two_blocks_nothing_is_cut_off(timers: list[asyncio.TimerHandle]) -> None:
    limit = Limit(time.monotonic() + 0.01)
    with limit:
        await asyncio.sleep(0)
    await wait_until(lambda: time.monotonic() > timers[0].when() + 0.01, "the limit passes while no block is entered")
    limit.until = time.monotonic() + 30.0
    with limit:
        await asyncio.sleep(0)
    limit.close()


async def test_a_limit_can_move_during_a_wait(limit: Limit) -> None:
    loop = asyncio.get_running_loop()
    limit.until = time.monotonic() + 0.02
    loop.call_soon(setattr, limit, "until", time.monotonic() + 0.06)
    began_at = time.monotonic()
    with pytest.raises(TimeoutError), limit:
        await _for_ever()
    assert time.monotonic() - began_at >= 0.05


async def test_an_earlier_limit_applies_from_the_next_block(limit: Limit) -> None:
    with limit:
        await asyncio.sleep(0)
    limit.until = time.monotonic() + 0.01
    async with asyncio.timeout(30.0):
        with pytest.raises(TimeoutError), limit:
            await _for_ever()


async def test_a_task_that_others_cancel_is_cancelled(limit: Limit) -> None:
    async def wait() -> None:
        with limit:
            await _for_ever()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_passes(limit: Limit) -> None:
    with pytest.raises(ValueError, match="mine"), limit:
        raise ValueError("mine")


async def test_an_error_on_the_way_out_passes(limit: Limit) -> None:
    async def end_badly() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            raise ValueError("mine") from None

    limit.until = time.monotonic() + 0.01
    with pytest.raises(ValueError, match="mine"), limit:
        await end_badly()
