"""One process of load: `python -m penstock.loadgen`. Started by `runner`, driven over stdin and stdout.

stdin: the plan, one line; when all processes have their connections, the instant to start, one line; then a line to end
early, another to end at once. stdout: `{"ready": …}`, a `{"progress": …}` a tick, and at the end `{"tally": …}`.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from typing import Any

import msgspec
import uvloop

from penstock.loadgen.engine import Load
from penstock.loadgen.plan import Plan
from penstock.loadgen.tally import Tally

MAX_PLAN_BYTES = 2**30


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())


async def _main() -> None:
    reader = asyncio.StreamReader(limit=MAX_PLAN_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    plan = msgspec.json.decode(await reader.readline(), type=Plan)
    _raise_file_limit(plan.concurrency + 64)
    load = Load(plan)
    await load.connect()
    _write({"ready": True})
    start_at = float(await reader.readline())
    obeying = asyncio.create_task(_obey(load, reader))
    gc.freeze()
    gc.disable()  # cycles arise only with connections, and their number is bounded
    sys.setswitchinterval(0.0005)  # the clock's thread must not wait long for its turn
    used = time.process_time()
    await load.run(start_at, _show)
    obeying.cancel()
    wall_s = max(time.monotonic() - start_at, 1e-9)
    load.tally.settle()
    _write({"tally": load.tally.to_dict(), "cpu": (time.process_time() - used) / wall_s})


async def _obey(load: Load, reader: asyncio.StreamReader) -> None:
    """The first line lets open answers end; a second one, or the end of stdin, ends the load at once."""
    if await reader.readline():
        load.stop()
        await reader.readline()
    load.abort()


def _show(tally: Tally) -> None:
    _write({"progress": [tally.total_ended, tally.total_failed, tally.total_tokens, tally.num_begun]})


def _write(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        new = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))


if __name__ == "__main__":
    main()
