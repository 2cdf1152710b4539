"""All of it at random, for as long as is asked."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from tests.chaos.load import Habits
from tests.chaos.plant import Member
from tests.chaos.registry import scenario
from tests.chaos.run import Run, Target

Fault = Callable[[Run], Awaitable[None]]


async def _pick(run: Run) -> Member:
    """A worker that is up. Two faults may pick the same one, but not one that just begins."""
    ready: list[Member] = []

    async def is_one_ready() -> bool:
        ready[:] = [worker for worker in run.plant.workers if worker.is_ready and worker.is_alive]
        return bool(ready)

    await run.until(is_one_ready, "a worker is ready", timeout_s=30)
    return run.rng.choice(ready)


async def _kill_worker(run: Run) -> None:
    worker = await _pick(run)
    await run.kill(worker)


async def _freeze_worker(run: Run) -> None:
    for_s = run.rng.choice([0.3, 1.0, 4.0])
    worker = await _pick(run)
    run.inject(f"SIGSTOP worker {for_s:g} s")
    worker.signal(signal.SIGSTOP)
    await asyncio.sleep(for_s)
    if worker.is_alive:
        worker.signal(signal.SIGCONT)


async def _stop_worker(run: Run) -> None:
    worker = await _pick(run)
    run.inject("SIGTERM worker")
    run.plant.forget(worker)
    new = run.plant.add("worker")
    status = await worker.stop()
    run.check(status == 0 or worker.was_killed, f"{worker.name} ended with {status}")
    await new.ready("/livez")


async def _kill_pubsub(run: Run) -> None:
    run.inject("CLIENT KILL pubsub")
    await run.plant.ask("CLIENT", "KILL", "TYPE", "pubsub")


async def _kill_connections(run: Run) -> None:
    run.inject("CLIENT KILL normal")
    await run.plant.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def _restart_server(run: Run) -> None:
    away_s = run.rng.choice([0.2, 0.5, 2.0])
    run.inject(f"restart server after {away_s:g} s")
    await run.plant.crash_server(away_s)


async def _stop_server(run: Run) -> None:
    for_s = run.rng.choice([0.5, 1.0, 3.0])
    run.inject(f"SIGSTOP server {for_s:g} s")
    await run.plant.stop_server(for_s)


async def _flush(run: Run) -> None:
    run.inject("FLUSHALL")
    await run.plant.ask("FLUSHALL")


async def _fill_memory(run: Run) -> None:
    run.inject("out of memory")
    await run.plant.ask("CONFIG", "SET", "maxmemory", "1mb")
    await asyncio.sleep(run.rng.uniform(0.2, 1.5))
    await run.plant.ask("CONFIG", "SET", "maxmemory", "0")


async def _leave(run: Run) -> None:
    entries = run.load.open_entries
    leaving = run.rng.sample(entries, len(entries) // 4)
    run.inject(f"{len(leaving) // 10 * 10} or so clients leave")
    for entry in leaving:
        run.load.leave(entry)


async def _kill_gateway(run: Run) -> None:
    await run.kill(run.rng.choice(run.plant.gateways))


async def _all_go_on(run: Run) -> None:
    """Every request is at a gateway that lives and in a server that knows it.

    What a gateway owned has no other home until its clients are back, and what a server forgot has none but its
    gateway until that has submitted it again: that one of them dies meanwhile is not promised to be survived.
    """
    at = time.monotonic() + 0.5

    async def do_they() -> bool:
        return all(
            entry.last_at > at if entry.is_stream else entry.sent_at > at
            for entry in run.load.open_entries
            if entry.sent_at <= at
        )

    await run.until(do_they, "what was open goes on", timeout_s=20)


KEEPS_DATA: tuple[Fault, ...] = (
    _kill_worker,
    _kill_worker,
    _freeze_worker,
    _stop_worker,
    _kill_pubsub,
    _kill_connections,
    _leave,
)
LOSES_DATA: tuple[Fault, ...] = (_restart_server, _flush)
ALONE: tuple[Fault, ...] = (_kill_gateway, _stop_server, _fill_memory)


@scenario(Target(says="all invariants"), seconds=60)
async def at_random(run: Run) -> None:
    """Every fault at random, up to three at a time, with the seed logged."""
    await run.build(
        workers=3,
        gateways=2,
        habits=Habits(min_tokens=20, max_tokens=120, comes_back=True),
        worker_args=("--supervised", "--resume-window-s", "10", "--drain-s", "0.5"),
        gateway_args=("--resume-window-s", "10"),
    )
    run.settle_s = 25.0  # clients that left for good are waited for
    run.load.start(60)
    await run.until_streaming(30)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        group = run.rng.choices([KEEPS_DATA, LOSES_DATA, ALONE], weights=[6, 2, 3])[0]
        if group is ALONE:
            await run.rng.choice(ALONE)(run)
            await _all_go_on(run)
        else:
            faults = [run.rng.choice(group)]
            while run.rng.random() < 0.4 and len(faults) < 3:
                faults.append(run.rng.choice(KEEPS_DATA))
            await asyncio.gather(*(fault(run) for fault in faults))
            if group is LOSES_DATA:
                await _all_go_on(run)
        await asyncio.sleep(run.rng.uniform(0.0, 1.5))
