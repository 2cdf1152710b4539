"""Starts the processes of load, shows how they get on, and adds up what they counted.

Knows processes and pipes; knows nothing of terminals.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import InternalError
from penstock.loadgen.plan import Plan, target_of
from penstock.loadgen.result import Result, add_up
from penstock.processes.supervisor import program

READY_S = 30.0
START_IN_S = 0.1
_LINE_BYTES = 64 * 1024 * 1024  # a tally is one line


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Counts since the start, warm-up and all; `elapsed_s` may exceed the plan while the last answers come in."""

    elapsed_s: float
    num_ended: int
    num_failed: int
    num_tokens: int
    num_begun: int  # in the measured window


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.counts = [0, 0, 0, 0]
        self.tally: dict[str, Any] = {}
        self.cpu = 0.0

    @classmethod
    async def start(cls, plan: Plan) -> _Child:
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C is the parent's, which then asks its children for what they have.
        process = await asyncio.create_subprocess_exec(
            *program("penstock.loadgen"),
            stdin=pipe,
            stdout=pipe,
            limit=_LINE_BYTES,
            start_new_session=True,
        )
        child = cls(process)
        child.send(msgspec.json.encode(plan))
        async with asyncio.timeout(READY_S):
            await child.receive()
        return child

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")

    async def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise InternalError("A load process ended early; its output is above.")
        message: dict[str, Any] = msgspec.json.decode(line)
        return message

    async def follow(self) -> None:
        while not self.tally:
            message = await self.receive()
            if "progress" in message:
                self.counts = message["progress"]
            else:
                self.tally, self.cpu = message["tally"], message["cpu"]

    async def end(self) -> None:
        if self.process.returncode is None:
            if self.process.stdin is not None:
                self.process.stdin.close()
            try:
                async with asyncio.timeout(5.0):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


async def run(plan: Plan, on_progress: Callable[[LoadProgress], None] = lambda progress: None) -> Result:
    """Make the load of `plan`. An interrupt (SIGINT) ends it early, with the result of what was. Raises `ConfigError`
    for an invalid URL, `InternalError` when a process of load dies.
    """
    target_of(plan.url, plan.api)
    # Processes without a share would be idle ones, or, in the closed loop, none at all.
    least = min(plan.processes, plan.concurrency, plan.requests or plan.processes)
    plan = msgspec.structs.replace(plan, processes=max(1, least))
    loop = asyncio.get_running_loop()
    children: list[_Child] = []
    try:
        for index in range(plan.processes):
            children.append(await _Child.start(plan.share(index)))
        start_at = time.monotonic() + START_IN_S
        for child in children:
            child.send(repr(start_at).encode())

        def interrupt() -> None:
            for child in children:
                child.send(b"stop")

        loop.add_signal_handler(signal.SIGINT, interrupt)
        followers = [asyncio.ensure_future(child.follow()) for child in children]
        try:
            while not all(follower.done() for follower in followers):
                await asyncio.wait(followers, timeout=0.25, return_when=asyncio.FIRST_EXCEPTION)
                sums = [sum(child.counts[at] for child in children) for at in range(4)]
                on_progress(LoadProgress(max(0.0, time.monotonic() - start_at), *sums))
            for follower in followers:
                follower.result()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            for follower in followers:
                follower.cancel()
        return add_up(plan, [child.tally for child in children], [child.cpu for child in children])
    finally:
        for child in children:
            await child.end()
