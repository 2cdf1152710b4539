"""The processes of a simulated run: a gateway's relay with its ticking, and a worker, both the real ones."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import cast

from penstock.backends.mock.engine import MockBackend
from penstock.errors import StoreUnavailable
from penstock.event import Done, Event, Failed, Started
from penstock.gateway.admission import Admission
from penstock.gateway.pool import PoolView
from penstock.gateway.relay import Reader, Relay
from penstock.gateway.turns import Turns
from penstock.job import Claim, Job
from penstock.transports.base import LEASE_S, TICK_S, GatewayStore, WorkerStore
from penstock.worker.worker import Worker as RealWorker
from tests.simulation.loop import Killed, Process
from tests.simulation.plan import MODEL, ONCE, Plan
from tests.simulation.wire import Site, Wire

ENGINE_STALL_S = 3.0
DRAIN_S = 2.0
GRACE_S = 30.0
RESUME_WINDOW_S = 20.0


class Gateway:
    """What `penstock.gateway.gateway` is, without HTTP, keys and metrics."""

    def __init__(self, site: Site, process: Process, plan: Plan) -> None:
        self.id = process.name
        self.process = process
        self.wire = Wire(site, process)
        self.store = cast(GatewayStore, self.wire)
        self.is_stopping = False
        self.ticked_at = 0.0
        self.num_running = 0
        self.turns = Turns()
        self.pool = PoolView()
        self.admission = Admission(self.store, self.pool, no_worker_grace_s=GRACE_S)
        self.relay = Relay(
            self.id,
            self.store,
            max_depth=plan.max_depth,
            no_worker_grace_s=GRACE_S,
            resume_window_s=RESUME_WINDOW_S,
            pool=self.pool,
            has_lease=lambda: time.monotonic() - self.ticked_at < LEASE_S,
        )
        self.tasks = [process.spawn(self._tick()), process.spawn(self.relay.watch())]

    @property
    def can_serve(self) -> bool:
        return self.process.is_running and not self.is_stopping and self.wire.on_event is not None

    async def submit(self, job: Job, endpoint: str) -> Reader:
        return await self.relay.open(job, Gauge(self))

    async def stop(self) -> None:
        """The streams have ended: the process does too."""
        self.is_stopping = True
        await self.relay.drain()
        for task in self.tasks:
            task.cancel()

    async def _tick(self) -> None:
        is_open = is_away = False
        while True:
            try:
                if not is_open:
                    await self.store.open()
                    await self.store.listen(self.id, self.relay.deliver, self.relay.invalidate_all)
                    await self.store.watch(self.id, self.relay.hinted)
                    is_open = True
                pool = await self.store.tick(self.id)
            except StoreUnavailable:
                is_away = True
                await asyncio.sleep(0.1)
                continue
            if (pool.is_new or is_away) and self.ticked_at:
                self.relay.keeper.lose()
            is_away = False
            self.ticked_at = time.monotonic()
            self.pool.look(pool)
            await asyncio.sleep(TICK_S if pool.workers else TICK_S / 5)


class Gauge:
    """`penstock_running`, as `metrics.Meter` counts it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._is_running = self._is_over = False

    def observe(self, event: Event, now: float) -> None:
        if not self._is_running and not self._is_over and (isinstance(event, Started) or event.end):
            self._is_running = True
            self._gateway.num_running += 1
        if isinstance(event, Done | Failed):
            self.drop()

    def drop(self) -> None:
        self._gateway.num_running -= self._is_running
        self._is_running, self._is_over = False, True

    leave = drop


class Engine(MockBackend):
    """The mock, which cannot continue some answers."""

    def can_continue(self, claim: Claim) -> bool:
        return ONCE not in claim.job.text


class Worker:
    """`penstock.worker` over the mock; a crash point of its own besides the verbs of its store."""

    def __init__(self, site: Site, process: Process, plan: Plan) -> None:
        self.process = process
        self.wire = Wire(site, process)
        self.passages: Counter[str] = Counter()
        self.worker = RealWorker(
            cast(WorkerStore, self.wire),
            {MODEL: Engine(step_ms=plan.step_ms, step_ms_per_seq=plan.step_ms_per_seq, scripted=True)},
            max_batch_size=plan.max_batch_size,
            max_batches=plan.max_batches,
            engine_stall_s=ENGINE_STALL_S,
            drain_s=DRAIN_S,
            worker_id=process.name,
            on_stall=lambda seconds: site.stalled(process),
        )
        self.worker._crash_points = lambda point: self._reach(site, point)
        self.task = process.spawn(self.worker.run())

    @property
    def is_up(self) -> bool:
        return self.process.is_running and not self.worker.is_stopping and not self.task.done()

    @property
    def num_held(self) -> int:
        tenure = self.worker._tenure
        return 0 if tenure is None else len(tenure._jobs)

    def _reach(self, site: Site, point: str) -> None:
        site.passes(self.process, point)
        if not self.process.is_alive:
            raise Killed
