"""How to have Penstock send a command that the load alone does not bring about."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from tests.chaos.http import Exchange, get, post
from tests.chaos.plant import QUEUE
from tests.chaos.run import Run

NEW_WORKER = ("SUBSCRIBE", "SCRIPT LOAD", "enlist", "requeue", "hand_back", "reap")
NEW_SUBSCRIPTION = ("PSUBSCRIBE", "PING", "XRANGE", "TIME")


async def provoke(run: Run, name: str) -> None:
    """Return when it was done; the command may come a little later."""
    if name in NEW_WORKER:
        await _replace_worker(run)
    elif name in NEW_SUBSCRIPTION:
        await run.plant.ask("CLIENT", "KILL", "TYPE", "pubsub")
    elif name == "cancel":
        entries = [run.load.send(max_tokens=400, on_disconnect="cancel") for _ in range(8)]
        await asyncio.sleep(0.3)
        for entry in entries:
            run.load.leave(entry)
    elif name == "withdraw":
        async with _nobody_works(run):
            entries = [run.load.send(max_tokens=20, on_disconnect="cancel") for _ in range(12)]
            await asyncio.sleep(0.3)
            for entry in entries:
                run.load.leave(entry)
            await asyncio.sleep(0.3)
    elif name in ("discard", "unbind_key"):
        async with _nobody_works(run):
            for _ in range(100):
                run.load.send(max_tokens=5)
            await asyncio.sleep(0.7)
    elif name == "settle":
        for ids in (await run.plant.held()).values():
            await run.plant.ask("RPUSH", QUEUE, ids[-1])
    elif name == "restore":
        await run.plant.ask("FLUSHALL")
    elif name == "requeue_if_missing":
        await _strand(run)
    elif name == "append":
        await _repeat_a_frame(run)
    elif name == "delete":
        await _delete(run)
    elif name in ("adopt", "UNSUBSCRIBE", "LRANGE"):
        await _look_again(run)


@asynccontextmanager
async def _nobody_works(run: Run) -> AsyncIterator[None]:
    """Every worker is stopped, for less than its lease: what is sent now waits."""
    workers = list(run.plant.workers)
    for worker in workers:
        worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.signal(signal.SIGCONT)


async def _replace_worker(run: Run) -> None:
    old = run.plant.workers[0]
    new = run.plant.add("worker", "--drain-s", "0")
    await new.ready("/livez")
    run.plant.forget(old)
    await old.stop()


async def _strand(run: Run) -> None:
    """A job whose id is in no list."""
    async with _nobody_works(run):
        for _ in range(4):
            run.load.send(max_tokens=5)
        await asyncio.sleep(0.2)
        waiting = await run.plant.ask("LRANGE", QUEUE, -1, -1)
        for job_id in waiting:
            await run.plant.ask("LREM", QUEUE, 0, job_id)


async def _repeat_a_frame(run: Run) -> None:
    """A step whose first reply is lost is written again, with care."""
    proxy = run.plant.proxy
    assert proxy is not None
    proxy.drop("XADD")
    try:
        async with asyncio.timeout(1.0):
            await proxy.fired.wait()
    finally:
        proxy.drop("append")


async def _look_again(run: Run) -> None:
    """A second reader, perhaps at another gateway; and a look at where it stands."""
    first = run.load.send(max_tokens=40)
    await run.until_streaming(1)
    for _ in range(100):
        if first.request_id:
            break
        await asyncio.sleep(0.01)
    if first.request_id:
        for _ in range(3):
            run.load.join(first)
        await get(run.plant.gateways[0].url, f"/v1/requests/{first.request_id}")


async def _delete(run: Run) -> None:
    """A response that is deleted."""
    url = run.plant.gateways[0].url
    _, body = await post(url, "/v1/responses", {"input": "x", "max_output_tokens": 1})
    async with Exchange(url, "DELETE", f"/v1/responses/{msgspec.json.decode(body).get('id')}") as deleted:
        await deleted.read()
