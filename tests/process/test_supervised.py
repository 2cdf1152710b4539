"""A supervised worker: started again when it dies, its death reported at once, gone when its parent is."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.process import reading
from tests.process.programs import Program, free_port, site
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(60)

SLOW = "mock=mock:step_ms=20,chain=true"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


async def test_a_death_is_reported_and_the_streams_go_on_at_once(redis_url: str) -> None:
    with site(redis_url) as fleet:
        program = fleet.worker("--supervised", "--model", SLOW)
        fleet.worker("--model", SLOW)
        fleet.gateway()
        async with reading.client() as http:
            tasks = [
                asyncio.create_task(reading.stream(http, fleet.gateways[0], prompt=f"go on {i}", max_tokens=150))
                for i in range(20)
            ]

            async def all_flow() -> bool:
                page = (await http.get(f"{fleet.gateways[0]}/metrics")).text
                return reading.metric(page, "penstock_time_to_first_token_seconds_count") == 20

            await wait_until_async(all_flow, "all streams have begun")
            (child,) = _children(program.pid)
            os.kill(child, signal.SIGKILL)
            killed_at = time.monotonic()
            await wait_until(lambda: "its death was reported" in program.output(), "the parent says so")
            assert time.monotonic() - killed_at < 2.0, "the lease (2.5 s) would have been as quick"
            answers = await asyncio.gather(*tasks)
        assert {(answer.end, len(answer.tokens)) for answer in answers} == {("done", 150)}
        await wait_until(lambda: _children(program.pid) not in ([], [child]), "another child was started")
        assert program.stop() == 0
        assert _children(program.pid) == []


async def test_the_child_dies_with_its_parent(redis_url: str) -> None:
    with site(redis_url) as fleet:
        program = fleet.worker("--supervised")
        (child,) = _children(program.pid)
        program.signal(signal.SIGKILL)
        program.wait()
        await wait_until(lambda: not Path(f"/proc/{child}").exists(), "the child is gone")


async def test_a_wrong_setting_is_not_tried_for_ever(redis_url: str) -> None:
    with site(redis_url) as fleet:
        program = Program(
            *("worker", "--redis-url", redis_url, "--metrics-port", str(free_port())),
            *("--model", "mock=mock:no_such_option=1"),
        )
        fleet.programs.append(program)
        assert await asyncio.to_thread(program.wait) == 2
        assert "no_such_option" in program.output()
