"""Turns of callers: a few at once, the others one after another, each in the end; nothing is left of those who went."""

from __future__ import annotations

import asyncio

import pytest

from penstock.api.turns import AT_ONCE, Turns
from penstock.errors import RateLimited


async def test_thousands_of_one_caller_get_their_turn_a_few_at_once() -> None:
    turns, now, most, done = Turns(), 0, 0, 0

    async def read() -> None:
        nonlocal now, most, done
        async with turns.of("a"):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            done += 1

    await asyncio.gather(*(read() for _ in range(3000)))
    assert (most, done, len(turns)) == (AT_ONCE, 3000, 0)


async def test_one_caller_does_not_wait_for_another() -> None:
    turns = Turns()
    async with asyncio.TaskGroup() as group:
        release = asyncio.Event()

        async def hold() -> None:
            async with turns.of("a"):
                await release.wait()

        for _ in range(AT_ONCE + 5):
            group.create_task(hold())
        await asyncio.sleep(0)
        async with turns.of("b"):
            assert len(turns) == 2
        release.set()
    assert len(turns) == 0


async def test_a_turn_that_does_not_come_is_429_and_one_that_is_given_up_is_forgotten() -> None:
    turns, release = Turns(wait_s=0.05), asyncio.Event()

    async def hold() -> None:
        async with turns.of("a"):
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match="reads of a caller"):
        async with turns.of("a"):
            raise AssertionError("there was no free turn")
    waiting = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    await asyncio.gather(*holding, waiting, return_exceptions=True)
    assert len(turns) == 0
