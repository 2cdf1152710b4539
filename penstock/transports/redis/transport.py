"""`RedisTransport`: the three promises of `transports/base.py` over one client. Each is kept in a file of its own."""

from __future__ import annotations

from penstock.transports.base import LEASE_S, Transport
from penstock.transports.redis.client import RedisClient
from penstock.transports.redis.driver.endpoint import parse
from penstock.transports.redis.driver.link import StoreMetrics
from penstock.transports.redis.gateway_store import RedisGatewayStore
from penstock.transports.redis.keys import PoolKeys
from penstock.transports.redis.lifetimes import Lifetimes
from penstock.transports.redis.operator_store import RedisOperatorStore
from penstock.transports.redis.worker_store import RedisWorkerStore


class RedisTransport(RedisGatewayStore, RedisWorkerStore, RedisOperatorStore, Transport):
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
        lifetimes = Lifetimes(round(lease_s * 1000), round(retention_s * 1000), round(resume_window_s * 1000))
        super().__init__(RedisClient(parse(url), PoolKeys(pool), metrics), lifetimes)
