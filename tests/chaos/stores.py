"""The server away, empty, full, mute; and replies that are lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from penstock.transports.redis.scripts import SCRIPTS
from tests.chaos.load import Habits
from tests.chaos.provoke import provoke
from tests.chaos.registry import scenario
from tests.chaos.run import Run, Target

SHORT = Habits(min_tokens=30, max_tokens=70)


@scenario(Target(says="0 errors; ≤ 1.5 s", p99_ms=1500, max_ms=1500), seconds=3)
async def kill_pubsub(run: Run) -> None:
    """CLIENT KILL TYPE pubsub every 0.5 s."""
    await run.build(workers=2, gateways=2, habits=SHORT)
    run.load.start(60)
    await run.until_streaming(40)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        run.inject("CLIENT KILL pubsub")
        await run.plant.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.5)


@scenario(Target(says="≤ downtime + 3 s", max_ms=5000), seconds=8)
async def restart_server(run: Run) -> None:
    """kill -9 of the server, and an empty one after 0.2 and 2 s (10 s as well in a long run)."""
    await run.build(workers=2, gateways=2, habits=SHORT)
    run.load.start(60)
    for away_s in [0.2, 2.0, 10.0] if run.is_long else [0.2, 2.0]:
        await run.until_streaming(40)
        run.inject(f"restart after {away_s:g} s")
        await run.plant.crash_server(away_s)
        await asyncio.sleep(3.0)


@scenario(Target(says="≤ downtime + 3 s", max_ms=6000), seconds=5)
async def stop_server(run: Run) -> None:
    """SIGSTOP of the server for 3 s."""
    await run.build(workers=2, gateways=1, habits=SHORT)
    run.load.start(60)
    until = time.monotonic() + run.seconds
    while True:
        await run.until_streaming(40)
        run.inject("SIGSTOP server 3 s")
        await run.plant.stop_server(3.0)
        await asyncio.sleep(1.5)
        if not run.is_long or time.monotonic() > until:
            return


@scenario(Target(says="0 errors; ≤ 3 s", max_ms=3000), seconds=3)
async def flush(run: Run) -> None:
    """FLUSHALL under load."""
    await run.build(workers=2, gateways=2, habits=SHORT)
    run.load.start(60)
    await run.until_streaming(40)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        run.inject("FLUSHALL")
        await run.plant.ask("FLUSHALL")
        await asyncio.sleep(run.rng.uniform(1.0, 2.0))


@scenario(Target(says="0 errors for admitted; ≤ downtime + 3 s", max_ms=5000), seconds=3)
async def out_of_memory(run: Run) -> None:
    """maxmemory reached for 2 s, then lifted: what is admitted goes on, new requests get 503."""
    await run.build(workers=2, gateways=1, habits=SHORT)
    run.load.start(60)
    until = time.monotonic() + run.seconds
    while time.monotonic() < until:
        await run.until_streaming(30)
        run.inject("out of memory 2 s")
        await run.plant.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await run.plant.ask("CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(2.0)
        await run.plant.ask("CONFIG", "SET", "maxmemory", "0")
        await asyncio.sleep(1.0)
    refused = sum(entry.code == "store_unavailable" for entry in run.load.entries)
    run.check(refused > 0, "nothing was refused: memory was never out")


PLAIN = ("XADD", "PUBLISH", "BLMOVE", "LREM", "HMGET", "XRANGE", "TIME")
SCRIPTED = ("create", "enqueue", "take", "claim", "finish", "renew", "tick", "cancel", "withdraw", "charge")
SPOKEN = ("PSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE", "PING", "LRANGE", "SCRIPT LOAD")
NAMES = tuple(dict.fromkeys((*PLAIN, *SCRIPTED, *SPOKEN, *(script.name for script in SCRIPTS))))
FIRES_WITHIN_S = 2.5
STRANDED_WITHIN_S = 7.0
TRIES = 3


@scenario(Target(says="nothing lost, nothing run twice for the client", p99_ms=3000), seconds=25)
async def lost_replies(run: Run) -> None:
    """A proxy that executes one command of each kind and loses its reply."""
    proxy = await run.plant.interpose()
    await run.build(
        workers=2,
        gateways=2,
        habits=Habits(min_tokens=10, max_tokens=40, comes_back=True),
        gateway_args=("--rate-limit-rpm", "1000000", "--max-queue-depth", "60"),
    )
    run.load.start(16)
    await run.until_streaming(8)
    missed: list[str] = []
    until = time.monotonic() + run.seconds
    names, tries = list(NAMES), Counter[str]()
    while names:
        name = names.pop(0)
        proxy.drop(name, skip=run.rng.randint(0, 3) if name in ("XADD", "PUBLISH", "HMGET") else 0)
        provoking = asyncio.create_task(provoke(run, name))
        try:
            async with asyncio.timeout(STRANDED_WITHIN_S if name == "requeue_if_missing" else FIRES_WITHIN_S):
                await proxy.fired.wait()
            run.inject(f"lost reply of {name}")
        except TimeoutError:  # the load and the other faults decide what is sent just now
            tries[name] += 1
            (names if tries[name] < TRIES else missed).append(name)
        proxy.disarm()
        await provoking
        if not names and run.is_long and time.monotonic() < until:
            names = list(NAMES)
    if missed:
        run.notes["never sent in time"] = ", ".join(sorted(set(missed)))
    run.notes["commands whose reply was lost"] = len(proxy.dropped)
    must = set(PLAIN + SCRIPTED)
    run.check(not must & set(missed), f"the reply of {sorted(must & set(missed))} was never lost")
