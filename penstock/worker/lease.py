"""A worker's lease: renewed outside the engine's loop, and only while the engine makes progress.

Where the store can be used from a second event loop the lease is renewed in a thread of its own, so that CPU work
in the engine's loop does not look like a death; else in a task. A batch in its engine without any event for
`engine_stall_s` is a hang: the lease is no longer renewed, and `on_stall` ends the process. Also here, as it runs at
the same interval: the requests of dead workers return to the queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from penstock.errors import StoreUnavailable
from penstock.fleet import WorkerInfo
from penstock.transports.base import RENEW_S, Renewal, WorkerStore

logger = logging.getLogger("penstock.worker")

T = TypeVar("T")


class Holder(Protocol):
    """The holder of the lease. The first three are called from the lease's thread, `renewed` in the holder's loop."""

    def info(self) -> WorkerInfo: ...

    def running(self) -> Sequence[str]: ...

    def marks(self) -> Mapping[int, int]: ...

    def renewed(self, renewal: Renewal) -> None: ...


class EngineProgress:
    """How long the slowest batch has made no progress. Pure: time is an argument."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def stalled_s(self, marks: Mapping[int, int], now: float) -> float:
        """The longest time without a new event, seconds. `marks`: events so far of each batch that is in its engine."""
        self._seen = {
            run: self._seen[run] if run in self._seen and self._seen[run][0] == num else (num, now)
            for run, num in marks.items()
        }
        return max((now - since for _, since in self._seen.values()), default=0.0)


class Lease:
    """`on_stall(seconds)` is called once, from the lease's thread; `on_dead(error)` in the loop, when the lease ends
    without `stop`."""

    def __init__(
        self,
        store: WorkerStore,
        holder: Holder,
        engine_stall_s: float,
        on_stall: Callable[[float], None],
        on_dead: Callable[[BaseException], None],
        renew_s: float = RENEW_S,
    ) -> None:
        self._store = store
        self._holder = holder
        self._engine_stall_s = engine_stall_s
        self._on_stall = on_stall
        self._on_dead = on_dead
        self._renew_s = renew_s
        self._progress = EngineProgress()
        self._has_stalled = False
        self._is_stopping = False
        self._wake: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Start renewing a lease that was just taken."""
        clone = self._store.clone_for_thread()
        if clone is None:
            self._task = asyncio.create_task(self._hold(self._store, self._holder.renewed))
            self._task.add_done_callback(self._task_ended)
        else:
            self._thread = threading.Thread(target=self._main, args=(clone,), name="penstock-lease", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Stop renewing; the lease itself stays until it lapses or is given up."""
        self._is_stopping = True
        if self._wake is not None:
            self._wake()
        if self._task is not None:
            await asyncio.wait({self._task})
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2 * self._renew_s + 4.0)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_dead(error)

    def _main(self, clone: WorkerStore) -> None:
        try:
            asyncio.run(self._hold_with(clone))
        except Exception as error:
            logger.exception("the lease's thread has failed")
            self._call_in_loop(self._on_dead, error)

    async def _hold_with(self, clone: WorkerStore) -> None:
        def renewed(renewal: Renewal) -> None:
            self._call_in_loop(self._holder.renewed, renewal)

        try:
            await self._hold(clone, renewed, is_open=False)
        finally:
            await clone.close()

    def _call_in_loop(self, callback: Callable[[T], None], argument: T) -> None:
        """From the lease's thread."""
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            logger.debug("the worker's loop has ended before its lease")

    async def _hold(self, store: WorkerStore, renewed: Callable[[Renewal], None], is_open: bool = True) -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        self._wake = wake  # before `_is_stopping` is read: `stop` does these two the other way round
        due = time.monotonic()
        while not self._is_stopping:
            due = max(due + self._renew_s, time.monotonic())
            try:
                await asyncio.wait_for(woken.wait(), due - time.monotonic())
                break
            except TimeoutError:
                pass  # the usual case: it is time to renew
            if self._is_stalled():
                continue
            try:
                if not is_open:
                    await store.open()
                    is_open = True
                renewal = await store.renew(self._holder.info(), self._holder.running())
                renewed(renewal)
                if renewal.is_lost:
                    return
                for dead in renewal.dead:
                    await _reap(store, dead)
            except StoreUnavailable as error:
                logger.debug("cannot renew the lease, will try again: %s", error.message)

    def _is_stalled(self) -> bool:
        stalled_s = self._progress.stalled_s(self._holder.marks(), time.monotonic())
        if stalled_s < self._engine_stall_s:
            return False
        if not self._has_stalled:
            self._has_stalled = True
            self._on_stall(stalled_s)
        return True


async def _reap(store: WorkerStore, dead: str) -> None:
    """Reap one dead worker. If that fails the next renewal names it again; the failure does not block the others."""
    try:
        num = await store.reap(dead)
    except StoreUnavailable as error:
        logger.debug("cannot reap %s, will try again: %s", dead, error.message)
    else:
        if num:
            logger.info("gave back what a dead worker held", extra={"worker": dead, "jobs": num})
