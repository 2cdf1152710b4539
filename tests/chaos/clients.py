"""Clients that leave, that read nothing, and that lose their gateway."""

from __future__ import annotations

import asyncio
import time

from tests.chaos import slow
from tests.chaos.http import get
from tests.chaos.ledger import Entry
from tests.chaos.load import Habits
from tests.chaos.plant import QUEUE
from tests.chaos.registry import scenario
from tests.chaos.run import Run, Skip, Target

KIB = 1024


@scenario(Target(says="≤ 0.5 s; ≤ 1.0 s without the hint"), seconds=2)
async def leaving_clients(run: Run) -> None:
    """Clients that leave at once: waiting, at the first token, later, unstreamed; until the slots are free."""
    proxy = await run.plant.interpose()
    num = 100 if not run.is_long else 300
    await run.build(workers=1, gateways=1, worker_args=("--max-batch-size", "1", "--max-batches", str(num)))
    worst: dict[str, float] = {}

    async def gone(what: str, entries: list[Entry], target_s: float) -> None:
        run.inject(f"{len(entries)} clients leave")
        for entry in entries:
            run.load.leave(entry)
        took_s = await run.until(is_free, f"the slots are free again ({what})")
        worst[what] = max(worst.get(what, 0.0), took_s)
        run.bound(f"slots free, {what}", worst[what], target_s)

    async def is_free() -> bool:
        return not await plant.held() and not await plant.ask("LLEN", QUEUE)

    async def is_full() -> bool:
        return sum(len(ids) for ids in (await plant.held()).values()) == num

    async def are_waiting() -> bool:
        return bool(await plant.ask("LLEN", QUEUE) == num)

    plant = run.plant
    until = time.monotonic() + run.seconds
    while True:
        entries = [run.load.send(max_tokens=4000) for _ in range(num)]
        await run.until_streaming(num, tokens=1)
        await gone("at the first token", entries, 0.5)
        entries = [run.load.send(max_tokens=4000) for _ in range(num)]
        await run.until_streaming(num, tokens=15)
        waiting = [run.load.send(max_tokens=10, is_stream=index % 2 == 0) for index in range(num)]
        await run.until(are_waiting, "as many wait")
        for entry in waiting:
            run.load.leave(entry)
        run.inject(f"{num} clients leave")

        async def nobody_waits() -> bool:
            return not await plant.ask("LLEN", QUEUE)

        run.bound("out of the queue", await run.until(nobody_waits, "the queue is empty"), 0.5)
        await gone("in the middle", entries, 0.5)
        entries = [run.load.send(max_tokens=4000, is_stream=False) for _ in range(num)]
        await run.until(is_full, "whole answers run")
        await gone("unstreamed", entries, 0.5)
        entries = [run.load.send(max_tokens=4000) for _ in range(num)]
        await run.until_streaming(num, tokens=5)
        proxy.mute = b"inference:control:"
        await gone("without the hint", entries, 1.0)
        proxy.mute = b""
        if not run.is_long or time.monotonic() > until:
            return


RESUMED = Target(says="0 lost or repeated; stops within the window + 3 s", p99_ms=1000, counts="resumed")


@scenario(RESUMED, seconds=4)
async def kill_gateways(run: Run) -> None:
    """kill -9 of gateways; clients come back at another one, and the work of those who do not is stopped."""
    window_s = 2.0
    habits = Habits(comes_back=True, whole_share=0.0)
    await run.build(
        workers=2,
        gateways=3,
        habits=habits,
        worker_args=("--resume-window-s", str(window_s)),
        gateway_args=("--resume-window-s", str(window_s)),
    )
    _, schema = await get(run.plant.gateways[0].url, "/openapi.json")
    if b"/v1/requests/{request_id}/events" not in schema:
        raise Skip("there is no /v1/requests/{id}/events")
    run.load.start(60)
    await run.until_streaming(40)
    until = time.monotonic() + run.seconds
    while True:
        await run.kill(run.rng.choice(run.plant.gateways))
        await asyncio.sleep(run.rng.uniform(1.0, 2.0))
        if time.monotonic() > until:
            break
    await run.load.stop(60)
    await _nobody_returns(run, window_s)


async def _nobody_returns(run: Run, window_s: float) -> None:
    """Streams whose gateway dies and whose clients do not come back."""
    entries = [run.load.send(max_tokens=4000) for _ in range(20)]
    await run.until_streaming(20, tokens=3)
    for entry in entries:  # the client goes with its gateway, so that it cannot come back
        run.load.leave(entry)
    began = time.monotonic()
    killed = list(run.plant.gateways)
    run.inject("kill -9 gateway, nobody returns")
    for gateway in killed:
        gateway.kill()
    for gateway in killed:
        await run.plant.replace(gateway)

    async def is_stopped() -> bool:
        return not await run.plant.held()

    await run.until(is_stopped, "the work without a client stops", timeout_s=30)
    run.bound("stopped without a client", time.monotonic() - began, window_s + 3.0)


NUM_FLEET = 2000
RETURNED = Target(says="0 lost or repeated; p99 ≤ 4.0 s at 2,000", p99_ms=4000, counts="resumed")


@scenario(RETURNED, seconds=4)
async def fleet_returns(run: Run) -> None:
    """kill -9 of a gateway with 2,000 streams: all its clients come back to another gateway in the same instant."""
    habits = Habits(comes_back=True, whole_share=0.0)
    await run.build(
        workers=1,
        gateways=2,
        habits=habits,
        worker_args=("--model", "mock=mock:step_ms=500,chain=true", "--max-batch-size", "64", "--max-batches", "512"),
        gateway_args=("--max-queue-depth", "5000"),
    )
    killed, other = run.plant.gateways
    run.load.doors = lambda: [killed]
    sent = 0
    while sent < NUM_FLEET:  # not all at once: it is their return that is looked at
        sent += 200
        for _ in range(200):
            run.load.send(max_tokens=80)

        async def have_begun(num: int = sent) -> bool:
            return sum(bool(entry.tokens) or entry.outcome != "open" for entry in run.load.entries) >= num

        await run.until(have_begun, f"{sent} streams have begun", timeout_s=60)
    run.load.doors = lambda: [other]
    hit = run.load.open_entries
    run.inject("kill -9 gateway, all come back at once")
    run.notes["clients that came back at once"] = len(hit)
    killed.kill()
    await killed.ended()
    run.plant.forget(killed)

    async def is_over() -> bool:
        return not run.load.open_entries

    await run.until(is_over, "all streams end", timeout_s=90)
    num = sum(entry.num_resumed > 0 for entry in hit)
    run.check(num == len(hit) > NUM_FLEET / 2, f"{num} of {len(hit)} clients came back")


@scenario(Target(says="others unaffected; ≤ 64 KiB a stream", p99_ms=500), seconds=7)
async def slow_readers(run: Run) -> None:
    """300 streams (2,000 in a long run), a tenth of which read nothing: the others do not notice."""
    num = 2000 if run.is_long else 300
    fast = f"flood=mock:step_ms={40 if run.is_long else 4}"  # so many tokens a second as two cores can bear
    model = "mock=mock:step_ms=200,chain=true" if not run.is_long else "mock=mock:step_ms=500,chain=true"
    await run.build(
        workers=2,
        gateways=1,
        habits=Habits(min_tokens=20, max_tokens=40, whole_share=0.0),
        worker_args=("--model", model, "--model", fast, "--max-batch-size", "8", "--max-batches", "512"),
        gateway_args=("--slow-reader-s", "2", "--max-queue-depth", "5000"),
    )
    gateway = run.plant.gateways[0]
    before_kib = gateway.use()[1]
    run.load.start(num - num // 10)
    await run.until_streaming((num - num // 10) // 2, tokens=2, timeout_s=60)
    run.inject(f"{num // 10} clients read nothing")
    idlers = await slow.idle(gateway.url, num // 10, "flood", 8000)
    most_kib, until = before_kib, time.monotonic() + run.seconds
    try:
        while time.monotonic() < until:
            await asyncio.sleep(0.1)
            most_kib = max(most_kib, gateway.use()[1])

        async def are_cut() -> bool:
            return gateway.output().count("the client does not read") >= len(idlers)

        if not run.is_long:
            await run.until(are_cut, "those who read nothing are cut off", timeout_s=25)
    finally:
        slow.close(idlers)
    per_stream = (most_kib - before_kib) / num
    run.notes["gateway's memory, a stream"] = f"{per_stream:.0f} KiB (target 64)"
    run.check(per_stream <= 64 * run.slack, f"{per_stream:.0f} KiB of the gateway's memory for each stream")
    for _ in idlers:  # in the books of the gateway
        run.load.entries.append(Entry("idle", 8000, gateway=gateway.name, outcome="left", is_stream=False))
