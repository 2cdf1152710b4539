"""Virtual time: an event loop that jumps to its next timer, and processes in it that can be frozen and killed.

Every callback belongs to the process in whose context it was made. A frozen process' callbacks are kept until it
wakes, as SIGSTOP does; a dead one's never run. Nothing here is left to chance: what asyncio or the code under test
would order by the address of an object is ordered by a number instead. Knows nothing of Penstock but the hashes.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal
from zlib import crc32

from penstock.worker.running_job import Run, RunningJob

START = 1_000.0
WALL = 1_800_000_000.0

_process: contextvars.ContextVar[Process] = contextvars.ContextVar("simulated process")
_numbers = count()


class Killed(BaseException):
    """Raised where a process kills itself, so that the callback at work ends as well."""


class Stuck(Exception):
    """Nothing is left that could ever happen."""


class Process:
    """What lives, freezes and dies as one."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.state: Literal["running", "frozen", "dead"] = "running"
        self.is_unharmed = True
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self._loop = loop
        self._parked: list[asyncio.Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def is_alive(self) -> bool:
        return self.state != "dead"

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work, context=self.context.copy())

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call in this process; if it is frozen by then, when it wakes."""
        return self._loop.call_at(when, callback, *args, context=self.context)

    def park(self, handle: asyncio.Handle) -> None:
        self._parked.append(handle)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        if len(self._tasks) > 64:
            self._tasks = self.pending()
        self._tasks.append(task)

    def pending(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._tasks if not task.done()]

    def freeze(self) -> None:
        if self.state == "running":
            self.state = "frozen"
            self.is_unharmed = False

    def wake(self) -> None:
        if self.state == "frozen":
            self.state = "running"
            self._loop.run_parked(self._parked)

    def kill(self) -> None:
        self.state = "dead"
        self.is_unharmed = False

    async def unwind(self) -> None:
        """After the run: let what a dead process left behind come to its end, so that nothing of it stays."""
        self.state = "running"
        self._loop.run_parked(self._parked)
        for _ in range(20):
            pending = self.pending()
            if not pending:
                return
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=30.0)


class _Task(asyncio.Task[Any]):
    """A task with a number of its own for a hash, so that a set of tasks has an order that repeats."""

    def __init__(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> None:
        self._number = next(_numbers)
        super().__init__(coro, **kwargs)
        process = (kwargs.get("context") or contextvars.copy_context()).get(_process)
        if process is not None:
            process.adopt(self)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """No files and no sockets; `time()` is also what `time.monotonic()` says under `virtual`."""

    _ready: Any  # of the base class, which typeshed does not show
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.num_steps = 0
        self.set_task_factory(lambda loop, coro, **kwargs: _Task(coro, loop=loop, **kwargs))

    def time(self) -> float:
        return self.now

    def run_parked(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)
        handles.clear()

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not ready:
            if not scheduled:
                raise Stuck
            self.now = max(self.now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self.now:
            handle = heapq.heappop(scheduled)
            if not handle.cancelled():
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(_process)
            if process is None or process.is_running:
                self.num_steps += 1
                handle._run()
            else:
                process.park(handle)

    def _write_to_self(self) -> None:
        """There is one thread only."""


@contextmanager
def virtual(loop: VirtualLoop, rng: random.Random) -> Iterator[None]:
    """While this lasts, the clocks of this thread's code are the loop's, and ids are drawn from `rng`."""
    real = (time.monotonic, time.time, time.time_ns, secrets.token_hex)
    hashes = (RunningJob.__hash__, Run.__hash__)
    time.monotonic = loop.time
    time.time = lambda: WALL + loop.now - START
    time.time_ns = lambda: int((WALL + loop.now - START) * 1e9)
    secrets.token_hex = lambda nbytes=16: f"{rng.getrandbits(8 * (nbytes or 16)):0{2 * (nbytes or 16)}x}"
    _give_hashes(lambda job: crc32(job.id.encode()), lambda run: run.number)
    try:
        yield
    finally:
        time.monotonic, time.time, time.time_ns, secrets.token_hex = real
        _give_hashes(*hashes)


def _give_hashes(of_job: Callable[[Any], int], of_run: Callable[[Any], int]) -> None:
    setattr(RunningJob, "__hash__", of_job)  # noqa: B010  # mypy does not let a method be assigned to
    setattr(Run, "__hash__", of_run)  # noqa: B010
