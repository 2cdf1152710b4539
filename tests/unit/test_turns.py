"""Turns at large reads: a few of each caller at once, a few that wait, and nothing that stays."""

from __future__ import annotations

import asyncio

import pytest

from penstock.api.turns import AT_ONCE, WAITING, Turns
from penstock.errors import RateLimited


async def test_a_caller_reads_a_few_at_once_and_holds_up_no_other() -> None:
    turns, go = Turns(), asyncio.Event()
    inside: list[str] = []

    async def read(caller: str) -> None:
        async with turns.of(caller):
            inside.append(caller)
            await go.wait()

    tasks = [asyncio.create_task(read("bob")) for _ in range(AT_ONCE + WAITING)]
    tasks.append(asyncio.create_task(read("alice")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == ["bob"] * AT_ONCE + ["alice"]
    with pytest.raises(RateLimited, match="At most"):
        await read("bob")
    tasks[5].cancel()  # one that waits and goes away
    go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes].count(True) == 1
    assert inside.count("bob") == AT_ONCE + WAITING - 1
    assert len(turns) == 0
