"""Which node of a Redis Cluster serves which slot. Knows nothing of commands but the one that it asks.

The map is read when it is first needed, and again after each sign that it is out of date: a node that does not answer,
or one that replies that a slot has moved (which is applied at once, for that slot).
"""

from __future__ import annotations

import asyncio
import logging
import random
from binascii import crc_hqx
from collections.abc import Callable
from typing import Any

from penstock.errors import StoreUnavailable
from penstock.transports.redis.driver.endpoint import Endpoint
from penstock.transports.redis.driver.link import StoreMetrics, ask_once

log = logging.getLogger(__name__)

NUM_SLOTS = 16384
PAUSE_S = 0.05
MAX_PAUSE_S = 0.5


def slot_of(key: str) -> int:
    """CRC16 (XMODEM) of the part in braces, or of the whole: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/."""
    data = key.encode()
    begin = data.find(b"{")
    end = data.find(b"}", begin + 2)
    if begin >= 0 and end >= 0 and data[begin + 1 : begin + 2] != b"}":
        data = data[begin + 1 : end]
    return crc_hqx(data, 0) % NUM_SLOTS


class Cluster:
    """The map of one cluster. `on_change` is called when the masters are not the ones that they were."""

    def __init__(self, seeds: tuple[Endpoint, ...], metrics: StoreMetrics, on_change: Callable[[], None]) -> None:
        self._seeds = seeds
        self._metrics = metrics
        self._on_change = on_change
        self._owners: list[Endpoint | None] = [None] * NUM_SLOTS
        self._masters: tuple[Endpoint, ...] = ()
        self._turn = random.randrange(1_000)  # so that not every process listens at the same node
        self._pause_s = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    def __str__(self) -> str:
        return f"the cluster of {', '.join(map(str, self._seeds))}"

    @property
    def masters(self) -> tuple[Endpoint, ...]:
        """Those that serve slots, as far as is known; empty before the map was read."""
        return self._masters

    def owner(self, slot: int) -> Endpoint | None:
        return self._owners[slot]

    def moved(self, slot: int, owner: Endpoint) -> None:
        """A node replied that `slot` is at `owner`: apply it, and read the whole map in the background."""
        self._owners[slot] = owner
        self.suspect()

    def suspect(self) -> None:
        """Read the map again, in the background."""
        if not self._is_closed:
            self._read()

    async def refresh(self) -> None:
        """Read the map again; simultaneous callers share one read. `StoreUnavailable` if no node returns it."""
        if self._is_closed:
            raise StoreUnavailable("the transport is closed")
        reading = self._read()
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            if reading.cancelled() and self._is_closed:  # `close` ended it; the caller was not cancelled
                raise StoreUnavailable("the transport is closed") from None
            raise

    async def locate(self) -> Endpoint:
        """Any node, another one each time: a cluster delivers published messages at every node."""
        await self.refresh()
        self._turn += 1
        return self._masters[self._turn % len(self._masters)]

    async def close(self) -> None:
        self._is_closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    # ── below ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> asyncio.Task[None]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_map(), name="redis-cluster")
            self._reading.add_done_callback(self._has_read)
        return self._reading

    def _has_read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # its callers get it as well

    async def _read_map(self) -> None:
        await asyncio.sleep(self._pause_s)
        nodes = list(dict.fromkeys([*random.sample(self._masters, len(self._masters)), *self._seeds]))
        failures: list[str] = []
        for node in nodes:
            try:
                self._draw(node, await ask_once(node, self._metrics, "CLUSTER", "SLOTS"))
                self._pause_s = PAUSE_S  # many callers may ask for the same reason
                return
            except StoreUnavailable as error:
                failures.append(error.message)
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s or PAUSE_S)
        raise StoreUnavailable(f"Redis is away: {self} does not answer: {'; '.join(failures)}")

    def _draw(self, asked: Endpoint, ranges: list[Any]) -> None:
        """`CLUSTER SLOTS`: first slot, last slot, the master's address, the replicas."""
        owners: list[Endpoint | None] = [None] * NUM_SLOTS
        masters: dict[Endpoint, None] = {}
        for first, last, master, *_ in ranges:
            host = (master[0] or b"").decode()  # a node that does not know its own name was reached by the asker's
            owner = asked.at(host or asked.host, int(master[1]))
            masters[owner] = None
            owners[first : last + 1] = [owner] * (last + 1 - first)
        if not masters:
            raise StoreUnavailable(f"{asked} serves no slot and knows none that does")
        before, self._masters, self._owners = set(self._masters), tuple(masters), owners
        if before != set(masters):
            log.info("the cluster's masters: %s", ", ".join(map(str, masters)))
            self._on_change()
