"""Data that are lost: a server that comes back without its last moments, gateways that stand still meanwhile.

Besides the usual load there are requests in the background, polled at any gateway until they are completed and for a
while after: what was completed once is never cancelled, failed or unknown at its own gateway.
"""

from __future__ import annotations

import asyncio
import signal
import time

import msgspec

from tests.chaos.http import Cut, get, post
from tests.chaos.ledger import Entry
from tests.chaos.load import Habits
from tests.chaos.plant import Member
from tests.chaos.registry import scenario
from tests.chaos.run import Run, Target

SHORT = Habits(min_tokens=30, max_tokens=70)
NUM_JOBS = 12
MAX_TOKENS = 12
POLL_S = 0.05
POLLED_FOR_S = 3.0  # after its end, longer than the store may need to be right again
END_WITHIN_S = 60.0


class Jobs:
    """Clients that ask for one background request after another."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_over = False
        self.num_completed = 0
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(NUM_JOBS)]

    async def stop(self) -> None:
        """Ask for no more; what was asked for is polled to its end."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, number: int) -> None:
        rng = self._run.rng
        while not self._is_over:
            owner = rng.choice(self._run.plant.gateways)
            body = {"model": "mock", "prompt": f"job {number}", "max_tokens": MAX_TOKENS, "background": True}
            try:
                status, answer = await post(owner.url, "/v1/generate", body)
            except Cut:
                continue
            if status != 202:
                await asyncio.sleep(POLL_S)
                continue
            await self._poll(owner, msgspec.json.decode(answer)["request_id"])

    async def _poll(self, owner: Member, request_id: str) -> None:
        seen, completed_at, until = "", 0.0, time.monotonic() + END_WITHIN_S
        while not completed_at or time.monotonic() < completed_at + POLLED_FOR_S:
            if time.monotonic() > until:
                self._run.check(False, f"background {request_id} is {seen or 'unknown'} after {END_WITHIN_S:g} s")
                return
            door = self._run.rng.choice(self._run.plant.gateways)
            state = await _state(door, request_id)
            if state == "completed" and not completed_at:
                completed_at = time.monotonic()
                self.num_completed += 1
            is_wrong = state in ("failed", "cancelled") or (state == "404" and door is owner)
            if is_wrong or (door is owner and completed_at and state not in ("completed", "503")):
                before = "completed" if completed_at else seen
                self._run.check(False, f"background {request_id} was {before}, and {door.name} says {state}")
                return
            seen = state
            await asyncio.sleep(POLL_S)
        entry = Entry("job", MAX_TOKENS, is_stream=False, gateway=owner.name, outcome="done")  # in the books as well
        entry.tokens = [""] * MAX_TOKENS
        self._run.load.entries.append(entry)


async def _state(door: Member, request_id: str) -> str:
    """Its state, or the status of a refusal; "503" where the gateway does not answer."""
    try:
        status, body = await get(door.url, f"/v1/requests/{request_id}")
    except Cut:
        return "503"
    return str(msgspec.json.decode(body)["state"]) if status == 200 else str(status)


@scenario(Target(says="0 errors, completed stays completed; ≤ downtime + 3 s", max_ms=5000), seconds=10)
async def cut_back(run: Run) -> None:
    """kill -9 of the server, and the same one again without what its append-only file had of the last 0.6 s."""
    await run.plant.keep_log()
    await run.build(workers=2, gateways=2, habits=SHORT)
    run.load.start(30)
    jobs = Jobs(run)
    until = time.monotonic() + run.seconds
    while True:
        await run.until_streaming(15)
        run.inject("server back without its last 0.6 s")
        await run.plant.cut_back(0.6, run.rng.choice((0.0, 0.3, 1.0)))
        await asyncio.sleep(run.rng.uniform(2.0, 3.0))
        if time.monotonic() > until:
            break
    await jobs.stop()
    run.check(jobs.num_completed > 0, "no background request was completed")


@scenario(Target(says="0 errors, completed stays completed; ≤ the freeze + 3 s", max_ms=6000), seconds=8)
async def frozen_gateways(run: Run) -> None:
    """Both gateways stand still for longer than their lease, and meanwhile the server loses everything."""
    await run.build(workers=2, gateways=2, habits=SHORT)
    run.load.start(30)
    jobs = Jobs(run)
    until = time.monotonic() + run.seconds
    while True:
        await run.until_streaming(15)
        run.inject("gateways frozen 3 s, FLUSHALL")
        for gateway in run.plant.gateways:
            gateway.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(run.rng.uniform(0.2, 2.5))
            await run.plant.ask("FLUSHALL")
            await asyncio.sleep(0.5)
        finally:
            for gateway in run.plant.gateways:
                gateway.signal(signal.SIGCONT)
        await asyncio.sleep(run.rng.uniform(2.0, 3.0))
        if time.monotonic() > until:
            break
    await jobs.stop()
    run.check(jobs.num_completed > 0, "no background request was completed")
