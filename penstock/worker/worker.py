"""`Worker`: one tenure after the other, each under a lease and an id of its own, until it is stopped.

Knows no settings, signals or processes: `processes/worker.py` does. In `penstock serve` it runs next to the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial

from penstock.backends.base import Backend, engines_of
from penstock.errors import BackendError, StoreUnavailable
from penstock.fleet import WorkerInfo, no_engine
from penstock.metrics import Metrics
from penstock.transports.base import WorkerStore
from penstock.version import __version__
from penstock.worker.crash_points import crash_points_from
from penstock.worker.lease import Lease
from penstock.worker.tenure import Limits, Tenure

logger = logging.getLogger("penstock.worker")

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 1.0
REAP_S = 5.0


class Worker:
    """Serves `backends` (model → backend) from an open `store`. Times are seconds.

    `on_stall(seconds)` is called, perhaps from another thread, when a batch's engine has made no progress for
    `engine_stall_s`; it should end the process. Without it `run` raises `BackendError`. `on_enlist(worker_id)` is
    called before the lease of a tenure is asked for, with the id that this tenure will have.
    """

    def __init__(
        self,
        store: WorkerStore,
        backends: Mapping[str, Backend],
        *,
        max_batch_size: int = 64,
        max_batches: int = 4,
        window_s: float = 0.010,
        closes_early: bool = True,
        engine_stall_s: float = 30.0,
        drain_s: float = 30.0,
        metrics: Metrics | None = None,
        worker_id: str | None = None,
        on_stall: Callable[[float], None] | None = None,
        on_enlist: Callable[[str], None] = lambda worker_id: None,
    ) -> None:
        self._store = store
        self._backends = dict(backends)
        self._limits = Limits(
            max_batch_size=max_batch_size,
            max_batches=max_batches,
            window_s=window_s,
            closes_early=closes_early,
            drain_s=drain_s,
        )
        self._engine_stall_s = engine_stall_s
        self._metrics = metrics
        self._id = worker_id
        self._on_stall = on_stall
        self._on_enlist = on_enlist
        self._crash_points = crash_points_from()
        self._tenure: Tenure | None = None
        self._is_enlisted = False
        self._stopping = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None

    @property
    def id(self) -> str:
        """The id of the current tenure; "" between two of them."""
        return self._tenure.id if self._tenure is not None else ""

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def why_not_ready(self) -> list[str]:
        """The reasons why this worker takes no work now; empty if it does."""
        if self._stopping.is_set():
            return ["draining"]
        return [] if self._is_enlisted else ["there is no lease from the store"]

    def why_degraded(self) -> list[str]:
        """What this worker cannot do now although it takes work."""
        return no_engine(sorted(name for name, seen in engines_of(self._backends).items() if not seen.num_up))

    def stop(self) -> None:
        """Finish what can be finished within `drain_s` and hand back the rest; again: hand back everything now."""
        self._stopping.set()
        if self._tenure is not None:
            self._tenure.stop()

    async def run(self) -> None:
        """Work until stopped. Raises `ConfigError` when the pool serves other models, or what a bug raised."""
        if self._metrics is not None:
            self._metrics.know(self._backends)
            for model, backend in self._backends.items():
                backend.observer = partial(self._metrics.report, backend.name or model)
        self._failed = asyncio.get_running_loop().create_future()
        try:
            await self._start_backends()
            while not self._stopping.is_set():
                await self._work()
        finally:
            self._failed.cancel()
            for backend in dict.fromkeys(self._backends.values()):
                await backend.close()

    async def _start_backends(self) -> None:
        started: set[Backend] = set()
        for model, backend in self._backends.items():
            if backend in started:  # several model names may share a backend
                continue
            started.add(backend)
            try:
                await backend.start()
            except Exception as error:
                error.add_note(f"The backend of the model {model} did not start.")
                raise

    async def _work(self) -> None:
        """One tenure: take a lease, work under it, and give it up or find it lost."""
        info = self._info()
        tenure = Tenure(self._store, self._backends, info, self._limits, self._metrics, self._crash_points)
        if not await self._enlist(info, tenure):
            return
        lease = Lease(self._store, tenure, self._engine_stall_s, self._stalled, self._fail)
        working = asyncio.create_task(tenure.run())
        lease.start()
        self._tenure, self._is_enlisted = tenure, True
        if self._stopping.is_set():
            tenure.stop()
        logger.info("working", extra={"worker": tenure.id, "models": list(self._backends)})
        try:
            assert self._failed is not None
            await asyncio.wait({working, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                tenure.lose()
                self._failed.result()
            await working
        finally:
            self._tenure, self._is_enlisted = None, False
            await lease.stop()
            if not working.done():
                tenure.lose()
                await asyncio.wait({working})
        await self._leave(tenure)

    async def _enlist(self, info: WorkerInfo, tenure: Tenure) -> bool:
        """Take a lease as soon as the store is available. False when stopped before that."""
        self._on_enlist(info.id)
        retry_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                await self._store.enlist(info)
                await self._store.watch(info.id, tenure.cancel)
                return True
            except StoreUnavailable as error:
                if retry_s == 4 * FIRST_RETRY_S:  # before that it may just be opening
                    logger.warning("waiting for the store: %s", error.message)
                try:
                    await asyncio.wait_for(self._stopping.wait(), retry_s)
                except TimeoutError:
                    retry_s = min(2 * retry_s, LAST_RETRY_S)
        return False

    async def _leave(self, tenure: Tenure) -> None:
        """Give up the lease; the ids left in the list (of a lost tenure: all) return to the queue."""
        deadline = time.monotonic() + REAP_S
        while True:
            try:
                await self._store.leave(tenure.id)
                await self._store.reap(tenure.id)
                return
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    logger.error("could not give up the lease; it lapses by itself: %s", error.message)
                    return
                await asyncio.sleep(FIRST_RETRY_S)

    def _info(self) -> WorkerInfo:
        """A new id for every tenure: ids are never reused. A given `worker_id` is its beginning."""
        worker_id = f"{self._id or 'w'}-{secrets.token_hex(6)}"
        return WorkerInfo(
            id=worker_id,
            models={name: backend.capabilities for name, backend in self._backends.items()},
            num_slots=self._limits.num_slots,
            num_free=self._limits.num_slots,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            engines=engines_of(self._backends),
        )

    def _stalled(self, seconds: float) -> None:
        """Called from the lease's thread, or from the loop if there is none."""
        what = f"engine has made no progress for {seconds:.1f} s (PENSTOCK_ENGINE_STALL_S)"
        logger.critical("the %s", what, extra={"worker": self.id})
        if self._on_stall is not None:
            self._on_stall(seconds)
        else:
            self._loop().call_soon_threadsafe(self._fail, BackendError(f"The {what}."))

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._failed is not None
        return self._failed.get_loop()

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
