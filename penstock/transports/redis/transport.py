"""`RedisTransport`: the promise of `transports/base.py`, kept by Redis. Its sides are in files of their own."""

from __future__ import annotations

from penstock.logs import Seldom
from penstock.transports.base import LEASE_S
from penstock.transports.quota import Recently
from penstock.transports.redis.caller_side import NEAR_FOR_S
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.endpoint import parse
from penstock.transports.redis.driver.link import StoreMetrics
from penstock.transports.redis.emitter import Emitter
from penstock.transports.redis.gateway_side import GatewaySide
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.lifetimes import Lifetimes
from penstock.transports.redis.object_side import ObjectSide
from penstock.transports.redis.operator_side import OperatorSide
from penstock.transports.redis.submit_side import CROWDING_FOR_S
from penstock.transports.redis.weighing import Weighing
from penstock.transports.redis.worker_side import WorkerSide


class RedisTransport(GatewaySide, ObjectSide, WorkerSide, OperatorSide):
    """One process' way to the store at `url`: at most four connections, however many requests there are.

    `pool`: which queue. `retention_s`: how long a job that this process creates is kept after its end.
    `resume_window_s`: how long a gateway may be away before the work that it owns is cancelled; workers use the
    gateways' value. `lease_s`: how long a worker or gateway counts as alive after its last pulse; others for tests.
    `ConfigError` if the URL cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        pool: str = "",
        retention_s: float = 60.0,
        resume_window_s: float = 30.0,
        lease_s: float = LEASE_S,
        metrics: StoreMetrics | None = None,
    ) -> None:
        self._url = url
        self._metrics = metrics
        self._lifetimes = Lifetimes(round(lease_s * 1000), round(retention_s * 1000), round(resume_window_s * 1000))
        self._redis = RedisClient(parse(url), PoolKeys(pool), metrics)
        self._emitter = Emitter(self._redis)
        self._weighing = Weighing(self._post_for)
        self._near, self._crowding = Recently(NEAR_FOR_S), Recently(CROWDING_FOR_S)
        self._unreadable_frames, self._unreadable_workers, self._newer_jobs = Seldom(), Seldom(), Seldom()

    async def open(self) -> None:
        await self._redis.open()

    async def close(self) -> None:
        self._weighing.flush()
        await self._redis.close()

    def clone_for_thread(self) -> RedisTransport:
        """For the lease thread: the same store, connections of its own, made in whichever event loop uses them."""
        lifetimes = self._lifetimes
        return RedisTransport(
            self._url,
            pool=self._redis.pool.pool,
            retention_s=lifetimes.retention_ms / 1000,
            resume_window_s=lifetimes.resume_window_ms / 1000,
            lease_s=lifetimes.lease_ms / 1000,
            metrics=self._metrics,
        )
