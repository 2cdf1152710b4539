"""A gateway's last view of its pool: the workers, their models, the queue, and its drain rate.

Everything that judges by the pool reads it here. Knows neither the store that was asked nor who judges.
"""

from __future__ import annotations

import asyncio
import time

from penstock.extras import EXTRAS, RESERVED
from penstock.fleet import Capabilities, Pool
from penstock.job import OPTIONAL_FIELDS

MIN_LOOK_S = 0.05
_RATE_MEMORY_S = 10.0


class DrainRate:
    """How fast workers take ids, as an exponentially weighted mean (time constant `_RATE_MEMORY_S`)."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._last: tuple[float, int, int] | None = None

    def observe(self, num_taken: int, depth: int, now: float) -> None:
        """Look at the queue. Only time that began with a job waiting counts for the drain rate."""
        last, self._last = self._last, (now, num_taken, depth)
        if last is None or num_taken < last[1] or last[2] == 0:
            return
        elapsed = now - last[0]
        if elapsed < MIN_LOOK_S:
            self._last = last
            return
        rate = (num_taken - last[1]) / elapsed
        weight = min(1.0, elapsed / _RATE_MEMORY_S) if self.per_s else 1.0
        self.per_s += weight * (rate - self.per_s)

    def wait_s(self, num: int) -> float | None:
        """How long `num` requests take to leave the queue, s; None while nothing has been measured."""
        return num / self.per_s if self.per_s > 1e-3 else None


class PoolView:
    """The last look at a pool. Before the first one `seen` is empty and `has_looked` false.

    `extras`: the fields that a request may have besides those of its API; the known ones and what a model accepts.
    `without_engine`: the models that no worker can run now.
    """

    def __init__(self) -> None:
        self.seen = Pool(depth=0)
        self.models: dict[str, Capabilities] = {}
        self.extras: frozenset[str] = EXTRAS
        self.without_engine: list[str] = []
        self.may_take_images = True  # a model served takes images; before any is known, perhaps
        self.has_looked = False
        self.drain_rate = DrainRate()
        self._looked_at = 0.0
        self._arrival = asyncio.Event()

    def look(self, pool: Pool) -> None:
        """Judge by this from now on."""
        self.seen = pool
        self.models = pool.models  # once a look: with many workers it takes a while
        accepted = {name for can in self.models.values() for name in can.accepts}
        self.extras = EXTRAS.union(accepted.difference(RESERVED, OPTIONAL_FIELDS))
        self.without_engine = pool.without_engine
        self.may_take_images = not self.models or any("images" in can.accepts for can in self.models.values())
        self.has_looked = True
        self._looked_at = time.monotonic()
        self.drain_rate.observe(pool.num_taken, pool.depth, self._looked_at)
        if pool.workers:
            self._arrival.set()
        else:
            self._arrival.clear()

    @property
    def depth(self) -> int:
        """Number of requests in the queue."""
        return self.seen.depth

    @property
    def has_workers(self) -> bool:
        """A worker is alive."""
        return bool(self.seen.workers)

    def serves(self, model: str) -> bool:
        """A live worker serves this model, as far as is known."""
        return not self.has_looked or model in self.models

    def is_live(self, worker_id: str) -> bool:
        """This worker is alive, as far as is known."""
        return not self.has_looked or any(worker.id == worker_id for worker in self.seen.workers)

    def wait_s(self, num: int) -> float | None:
        """How long `num` requests take to leave the queue, s; None while no rate has been measured."""
        return self.drain_rate.wait_s(num)

    def store_ms(self) -> int:
        """The store's clock, ms since 1970, as the last look lets us know it; never ahead of it. 0 before the first."""
        return int((self.seen.at + time.monotonic() - self._looked_at) * 1000) if self.seen.at else 0

    async def first_worker(self, timeout_s: float) -> bool:
        """Wait until a worker is alive; False if none was within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival.wait()
        except TimeoutError:
            return False
        return True
