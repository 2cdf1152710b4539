"""One gateway process: its relay, its admission, its view of the pool. Holds nothing that the store cannot rebuild.

Knows no route: `api/app.py` is its HTTP side, `processes/gateway.py` runs it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from penstock.callers.keys import CHECK_INTERVAL_S, KeyRing
from penstock.errors import ConfigError, Draining, QueueFull, StoreUnavailable
from penstock.fleet import no_engine
from penstock.gateway.admission import Admission
from penstock.gateway.keepalive import Keepalive
from penstock.gateway.places import Places
from penstock.gateway.pool import PoolView
from penstock.gateway.relay import Reader, Relay
from penstock.gateway.turns import Turns
from penstock.http.door import Door
from penstock.http.large_bodies import LargeBodies
from penstock.job import Job, new_process_id, new_ulid
from penstock.metrics import Metrics
from penstock.metrics.lag import watch_lag
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.transports.base import LEASE_S, TICK_S, GatewayStore, OperatorStore, RateLimit, Transport
from penstock.transports.quota import Share

logger = logging.getLogger(__name__)

_RETRY_CONNECT_S = 0.2
_STALE_TICK_S = 3.0
NUDGE_S = 0.02


class Gateway:
    """One gateway process: its id, its relay, its gate."""

    def __init__(self, settings: Settings, transport: Transport, metrics: Metrics, door: Door | None = None) -> None:
        """`transport`: each part gets the promise that it needs, and the routes `store` and `operators`.

        `door`: of the listener that requests come through; None in one's own process, where all are answered.
        """
        self.settings = settings
        self.door = door
        self.store: GatewayStore = transport
        self.operators: OperatorStore = transport
        self.metrics = metrics
        self.id = new_process_id("g")
        self.keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
        self.pool = PoolView()
        self.admission = Admission(
            self.store,
            self.pool,
            keys=self.keys,
            rate_limit=RateLimit(settings.rate_limit_rpm, settings.rate_limit_burst)
            if settings.rate_limit_rpm
            else None,
            trusted_proxies=settings.trusted_proxies,
            no_worker_grace_s=settings.no_worker_grace_s,
            max_waiting=settings.max_queue_depth,
        )
        self.relay = Relay(
            self.id,
            self.store,
            max_depth=settings.max_queue_depth,
            share=Share(
                max_queued=settings.max_queued_per_caller,
                max_stored=settings.max_stored_per_caller,
                max_stored_bytes=settings.max_stored_bytes_per_caller,
            ),
            no_worker_grace_s=settings.no_worker_grace_s,
            resume_window_s=settings.resume_window_s,
            retention_s=settings.retention_s,
            pool=self.pool,
            on_log_read=metrics.log_read,
            has_lease=lambda: time.monotonic() - self._ticked_at < LEASE_S,
        )
        self.on_refusal: Callable[[ConfigError], None] = lambda error: None
        self.on_death: Callable[[BaseException], None] = lambda error: None
        self.large_bodies = LargeBodies()
        self._tasks: list[asyncio.Task[None]] = []
        self._ticked_at = 0.0
        self._is_away = False
        self.keepalive = Keepalive(settings.sse_keepalive_s, settings.slow_reader_s)
        self._watching: set[Reader] = set()
        self._nudge = asyncio.Event()
        self.places = Places(self.operators)
        self.turns = Turns()

    # ── its life ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to connect, to tick and to watch. Answers 503 until the store is there."""
        works = [self._keep_ticking(), self.relay.watch(), self.keepalive.run(), watch_lag(self.metrics)]
        if self.keys is not None:
            works.append(self._watch_keys(self.keys))
        for work in works:
            task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(self._on_end)
            self._tasks.append(task)

    async def stop(self) -> None:
        await self.relay.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin_drain(self) -> None:
        """No longer ready; open streams may finish within `drain_s`, then they end in `Draining`."""
        if not self.admission.is_draining:
            self.admission.is_draining = True
            message = f"This gateway is shutting down, and waited {self.settings.drain_s:g} s ({env_name('drain_s')})."
            error = Draining(message, retry_after_s=1.0)
            asyncio.get_running_loop().call_later(self.settings.drain_s, self.relay.fail_all, error)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """A gateway cannot serve without one of its loops: a bug in one ends the process; `on_death` gets the error.

        No error of the store comes here: those are for the loops to survive.
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, ConfigError):
                self.on_refusal(error)
                return
            logger.critical("a loop of the gateway died; the process ends", exc_info=error)
            self._ticked_at = float("-inf")
            self.relay.fail_all(StoreUnavailable("This gateway has failed and starts again.", retry_after_s=1.0))
            self.on_death(error)

    async def _keep_ticking(self) -> None:
        is_open = False
        while True:
            try:
                if not is_open:
                    await self.store.open()
                    await self.store.check()
                    await self.store.listen(self.id, self.relay.deliver, self.relay.invalidate_all)
                    await self.store.watch(self.id, self.relay.hinted)
                    is_open = True
                pool = await self.store.tick(self.id)
            except StoreUnavailable as error:
                if not self._is_away:
                    logger.warning("the store does not answer: %s", error.message)
                self._is_away = True
                await asyncio.sleep(_RETRY_CONNECT_S)
                continue
            if (pool.is_new or self._is_away) and self._ticked_at:  # what it was away for may have cost it its data
                self.relay.keeper.lose()
            if self._is_away:
                logger.info("the store answers again")
                self._is_away = False
            self._ticked_at = time.monotonic()
            self.pool.look(pool)
            if self._watching:
                await self._look_at_queue()
            self.metrics.pool(pool.depth, len(pool.workers), pool.models, self.pool.without_engine)
            await self._rest(TICK_S if pool.workers else TICK_S / 5)

    async def _watch_keys(self, keys: KeyRing) -> None:
        """Also while no request comes: an operator who has revoked a key looks at the metric."""
        while True:
            keys.refresh()
            self.metrics.keys_stale(keys.stale_s)
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _rest(self, timeout_s: float) -> None:
        """Until the next tick is due, or a new reader asks for its place in the queue."""
        self._nudge.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._nudge.wait()
        except TimeoutError:
            return
        await asyncio.sleep(NUDGE_S)  # many may ask at once: one look serves them all

    def why_not_ready(self) -> list[str]:
        reasons = []
        if time.monotonic() - self._ticked_at > _STALE_TICK_S or not self._ticked_at:
            reasons.append("the store cannot be reached")
        if not self.store.is_listening:
            reasons.append("the subscription is down")
        if not self.pool.has_workers:
            reasons.append("no worker is alive")
        elif len(self.pool.without_engine) == len(self.pool.models):
            reasons += self._no_engine()
        if self.admission.is_draining:
            reasons.append("shutting down")
        return reasons

    def why_degraded(self) -> list[str]:
        """What this gateway cannot serve although it is ready: it stays ready while any model can run."""
        return self._no_engine() if len(self.pool.without_engine) < len(self.pool.models) else []

    def _no_engine(self) -> list[str]:
        """With API keys on without the models' names: anyone may ask whether a gateway is ready."""
        down = self.pool.without_engine
        if down and self.keys is not None:
            return [f"no engine is up for {len(down)} of {len(self.pool.models)} models"]
        return no_engine(down)

    # ── what the routes call ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def body_limit(self) -> str:
        """The setting with the size of the largest body that is read; its model is known only then (`job_of`)."""
        return "max_image_body_bytes" if self.pool.may_take_images else "max_body_bytes"

    def new_request_id(self) -> str:
        """A request's id. It begins with this gateway's own, so that its events come back here."""
        return f"{self.id}.{new_ulid()}"

    async def submit(self, job: Job, endpoint: str) -> Reader:
        """Push the job and open its stream. Raises `DeadlineUnreachable`, `QueueFull`, `StoreUnavailable`."""
        if self._is_away and time.monotonic() - self._ticked_at > LEASE_S:
            # To workers this gateway is gone: they cancel what it asks for once the resume window is over.
            message = f"This gateway could not renew its lease in Redis for {LEASE_S:g} s."
            raise StoreUnavailable(message, retry_after_s=1.0)
        self.admission.judge_deadline(job.timeout_s)
        try:
            return await self.relay.open(job, self.metrics.meter(job.model, endpoint))
        except QueueFull as error:
            error.retry_after_s = self.admission.retry_after_s()
            raise

    def watch_queue(self, reader: Reader) -> None:
        """Keep `places` fresh, and wake this reader when it may have moved."""
        if reader not in self._watching:
            self._watching.add(reader)
            self._nudge.set()

    def unwatch_queue(self, reader: Reader) -> None:
        self._watching.discard(reader)

    async def _look_at_queue(self) -> None:
        try:
            await self.places.look()
        except StoreUnavailable:
            return  # the next tick reports it
        for reader in self._watching:
            reader.wake()
